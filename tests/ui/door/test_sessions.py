"""Session states: a client above its share loses its own oldest one, never another client's."""

import gradio as gr
import pytest

from mlpmem.ui.door.bounds import Bounds
from mlpmem.ui.door.routes import RefusedError
from mlpmem.ui.door.sessions import IDLE, Sessions


@pytest.fixture
def dropped():
    return []


@pytest.fixture
def blocks(dropped, run):
    async def build():
        with gr.Blocks(analytics_enabled=False) as page:
            gr.State("mine", time_to_live=3600, delete_callback=dropped.append)
            gr.HTML("x" * 10_000)
        return page

    return run(build())


def sessions_of(blocks, clock=lambda: 0.0, **bounds) -> Sessions:
    sessions = Sessions(Bounds(**bounds), clock)
    sessions.set_blocks(blocks)
    return sessions


def remember(sessions, name, client, value) -> None:
    """Store a value in a client's session."""
    sessions.admit(name, client)
    state = next(i for i, block in sessions.blocks.blocks.items() if isinstance(block, gr.State))
    sessions[name][state] = value


def recalled(sessions, name):
    return list(sessions.session_data[name].state_data.values()) if name in sessions else None


def test_a_client_with_too_many_sessions_loses_its_own_oldest(blocks, dropped):
    sessions = sessions_of(blocks, sessions=2)
    remember(sessions, "other", "b", "theirs")
    for i in range(200):
        remember(sessions, f"s{i}", "a", i)
    assert recalled(sessions, "other") == ["theirs"]
    assert recalled(sessions, "s199") == [199] and recalled(sessions, "s197") is None
    assert dropped[:3] == [0, 1, 2], "the state's delete callback runs"
    assert len(sessions.visits) == len(sessions.session_data) == 3


def test_open_pages_are_kept_and_one_more_is_refused(blocks):
    sessions = sessions_of(blocks, sessions=2)
    for name in ("p", "q"):
        remember(sessions, name, "a", name)
        sessions.opened(name, 1)
    with pytest.raises(RefusedError, match="2 pages open here") as refused:
        sessions.admit("r", "a")
    assert refused.value.status == 429
    sessions.opened("p", -1)
    sessions.admit("r", "a")
    assert recalled(sessions, "p") is None and recalled(sessions, "q") == ["q"]


def test_above_the_total_limit_the_client_with_most_sessions_loses_one(blocks):
    sessions = sessions_of(blocks, sessions=4, all_sessions=4)
    remember(sessions, "first", "b", 1)
    for i in range(3):
        remember(sessions, f"s{i}", "a", i)
    remember(sessions, "new", "c", 2)
    assert recalled(sessions, "first") == [1] and recalled(sessions, "s0") is None
    for name in list(sessions.visits):
        sessions.opened(name, 1)
    with pytest.raises(RefusedError) as refused:
        sessions.admit("more", "d")
    assert refused.value.status == 503


def test_a_closed_session_expires(blocks):
    now = [0.0]
    sessions = sessions_of(blocks, clock=lambda: now[0])
    for name in ("open", "closed"):
        remember(sessions, name, "a", name)
    sessions.opened("open", 1)
    now[0] = IDLE + 1
    sessions.sweep()
    assert list(sessions.visits) == ["open"]


def test_a_session_stores_its_state_but_no_components(blocks):
    sessions = sessions_of(blocks)
    html = next(i for i, block in blocks.blocks.items() if isinstance(block, gr.HTML))
    state = sessions["a"]
    state._update_value_in_config(html, "y" * 100)
    assert list(state.components) == [] and html in state

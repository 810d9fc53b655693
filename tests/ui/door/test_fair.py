"""The queue: turns by computing time, a share of waiting jobs, and nobody waits unheard."""

from functools import partial
from types import SimpleNamespace

import gradio as gr
import pytest
from fastapi import HTTPException
from gradio.data_classes import PredictBodyInternal

from mlpmem.ui.door import shares
from mlpmem.ui.door.bounds import Bounds
from mlpmem.ui.door.fair import FADES, SIZE, UNHEARD, WINDOW, FairQueue, Used


class Desk:
    """A queue with a clock, to which clients bring jobs; nothing of it runs."""

    def __init__(self, run, **bounds):
        self.now, self._run = 0.0, run
        self.queue = run(self._build(Bounds(**bounds)))

    async def _build(self, bounds):
        with gr.Blocks(analytics_enabled=False) as blocks:
            box = gr.Textbox()
            box.change(lambda x: x, box, box, concurrency_id="model")
        return FairQueue(blocks, bounds, lambda: self.now)

    def push(self, client: str, session: str, size: int = 10) -> str:
        """Return the event's id, or the sentence that refused it."""
        return self._run(self._push(client, session, size))

    async def _push(self, client, session, size):
        body = PredictBodyInternal(data=["x"], fn_index=0, session_hash=session)
        request = SimpleNamespace(scope={shares.KEY: client, SIZE: size})
        try:
            return (await self.queue.push(body, request, None))[1]
        except HTTPException as error:
            return f"{error.status_code} {error.detail}"

    def order(self) -> list[str]:
        """Return the sessions in the order of their turns."""
        for queue in self.queue.event_queue_per_concurrency_id.values():
            self.queue._arrange(queue)
        return [event.session_hash for event in self.queue.waiting()]


@pytest.fixture
def desk(run):
    """Return desk(bounds...)."""
    return partial(Desk, run)


def test_a_client_has_its_share_of_waiting_jobs_and_others_have_theirs(desk):
    desk = desk(waiting=2)
    for session in ("a1", "a2"):
        assert len(desk.push("a", session)) == 32
    assert desk.push("a", "a3").startswith("429 2 requests of yours wait already")
    assert len(desk.push("b", "b1")) == 32


def test_second_jobs_come_after_everybodys_first(desk):
    desk = desk()
    for client, session in (("a", "a1"), ("a", "a2"), ("b", "b1"), ("c", "c1")):
        desk.push(client, session)
    assert desk.order() == ["a1", "b1", "c1", "a2"]


def test_whoever_has_used_least_is_next_and_what_was_used_fades(desk):
    desk = desk()
    desk.queue.used.add("a", 10.0)
    desk.queue.used.add("b", 3.0)
    for client in "abc":
        desk.push(client, f"{client}1")
    assert desk.order() == ["b1", "c1", "a1"], "up to a few seconds all are alike"
    used = Used(lambda: desk.now)
    used.add("a", 10.0)
    desk.now += FADES
    assert used.of("a") == pytest.approx(5.0)


def test_a_client_beyond_its_part_is_held_back_while_others_are_about(desk):
    desk = desk()
    desk.push("a", "a1")
    desk.queue.used.add("a", 60.0)
    desk.queue.listening.update(["a1", "a2", "b1"])
    assert desk.queue.get_events() is not None, "nobody else is about"
    for client in "bcd":
        desk.queue.used.add(client, 0.1)
    desk.push("a", "a2")
    assert desk.queue.get_events() is None
    desk.push("b", "b1")
    desk.now = 1.0
    assert desk.queue.get_events()[0][0].session_hash == "b1", "others are not"
    desk.now = FADES
    assert desk.queue.get_events()[0][0].session_hash == "a2", "not for ever"


def test_clients_that_share_alike_are_not_held_back_however_busy_they_are(desk):
    desk = desk()
    for i in range(10):
        desk.queue.used.add(str(i), WINDOW / 10)
    desk.push("3", "s")
    desk.queue.listening["s"] = 1
    assert desk.queue.get_events() is not None


def test_a_running_job_counts_while_it_runs(desk):
    desk = desk()
    desk.queue.begun["a"] = 0.0
    desk.now = 30.0
    desk.push("a", "a1")
    desk.push("b", "b1")
    assert desk.order() == ["b1", "a1"]


def test_jobs_that_nobody_listens_to_come_last_and_are_dropped_with_a_word(desk):
    desk = desk(listen_seconds=10)
    desk.push("a", "unheard")
    desk.push("b", "heard")
    desk.queue.used.add("b", 100.0)
    with desk.queue.listened("heard"):
        desk.now = 5.0
        desk.queue.sweep()
        assert desk.order() == ["heard", "unheard"]
        desk.now = 11.0
        desk.queue.sweep()
    assert desk.order() == ["heard"]
    *_, last = list(desk.queue.pending_messages_per_session["unheard"]._queue)
    assert last.output["error"] == UNHEARD


def test_unheard_jobs_make_room_and_heard_ones_are_not_lost(desk):
    desk = desk(queue=3, waiting=2)
    for i in range(2):
        desk.push("a", f"a{i}")
    desk.push("b", "b1")
    with desk.queue.listened("a1"), desk.queue.listened("b1"):
        desk.now = 2.0
        assert len(desk.push("c", "c1")) == 32
        assert sorted(desk.order()) == ["a1", "b1", "c1"]
        with desk.queue.listened("c1"):
            desk.now = 4.0
            assert "Queue is full" in desk.push("d", "d1")


def test_a_clients_own_unheard_job_gives_way_to_its_next(desk):
    desk = desk(waiting=1)
    desk.push("a", "a1")
    assert desk.push("a", "a2").startswith("429"), "it may be about to listen"
    desk.now = 2.0
    assert len(desk.push("a", "a3")) == 32 and desk.order() == ["a3"]


def test_large_bodies_wait_within_their_room(desk):
    desk = desk(queue_bytes=100, small_body=10)
    desk.push("a", "a1", 80)
    assert desk.push("b", "b1", 30).startswith("503 There is no room")
    assert len(desk.push("b", "b1", 10)) == 32


def test_what_is_kept_for_whoever_left_goes_and_whoever_does_not_read_is_told(desk):
    desk = desk(result_seconds=60, listen_seconds=10, unread=3)
    desk.push("a", "gone")
    for _ in range(4):
        desk.queue.pending_messages_per_session["gone"].put_nowait(None)
    assert desk.push("a", "gone").startswith("429 Read what was answered")
    for second in range(0, 90, 5):
        desk.now = float(second)
        desk.queue.sweep()
    assert not desk.queue.pending_messages_per_session
    assert not desk.queue.pending_event_ids_session and not desk.queue.event_ids_to_events


def test_a_job_begins_when_somebody_listens_and_ends_when_nobody_does(desk):
    desk = desk()
    desk.push("a", "a1")
    assert desk.queue.get_events() is None
    desk.now = 0.5
    with desk.queue.listened("a1"):
        (event,), _, _ = desk.queue.get_events()
        desk.queue.active_jobs = [[event]]
        desk.queue.started[event._id] = desk.now
        desk.now = 5.0
        desk.queue.sweep()
        assert event.alive
    desk.queue.sweep()
    assert not event.alive

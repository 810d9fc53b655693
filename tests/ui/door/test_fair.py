"""The fair queue: turns by computing time, a limit on queued jobs, and dropped listeners."""

from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace

import gradio as gr
import pytest
from fastapi import HTTPException
from gradio.data_classes import PredictBodyInternal

from mlpmem.ui.door import shares
from mlpmem.ui.door.bounds import Bounds
from mlpmem.ui.door.fair import ACTIVE, FREE, PART, SIZE, UNHEARD, Credit, FairQueue


class QueueClient:
    """A queue with a fake clock; its jobs do not run."""

    def __init__(self, run, **bounds):
        self.now, self._run = 0.0, run
        self.queue = run(self._build(Bounds(**bounds)))

    async def _build(self, bounds):
        with gr.Blocks(analytics_enabled=False) as blocks:
            box = gr.Textbox()
            box.change(lambda x: x, box, box, concurrency_id="model")
        return FairQueue(blocks, bounds, lambda: self.now)

    def push(self, client: str, session: str, size: int = 10) -> str:
        """Return the event's id, or the refusal's status and sentence."""
        return self._run(self._push(client, session, size))

    async def _push(self, client, session, size):
        body = PredictBodyInternal(data=["x"], fn_index=0, session_hash=session)
        request = SimpleNamespace(scope={shares.KEY: client, SIZE: size})
        try:
            return (await self.queue.push(body, request, None))[1]
        except HTTPException as error:
            return f"{error.status_code} {error.detail}"

    def order(self) -> list[str]:
        """Return the sessions by turn."""
        for queue in self.queue.event_queue_per_concurrency_id.values():
            self.queue._arrange(queue)
        return [event.session_hash for event in self.queue.waiting()]


@pytest.fixture
def desk(run):
    """Return desk(bounds...)."""
    return partial(QueueClient, run)


def test_queued_jobs_are_limited_per_client(desk):
    desk = desk(waiting=2)
    for session in ("a1", "a2"):
        assert len(desk.push("a", session)) == 32
    assert desk.push("a", "a3").startswith("429 2 of your requests are waiting")
    assert len(desk.push("b", "b1")) == 32


def test_every_clients_first_job_precedes_second_jobs(desk):
    desk = desk()
    for client, session in (("a", "a1"), ("a", "a2"), ("b", "b1"), ("c", "c1")):
        desk.push(client, session)
    assert desk.order() == ["a1", "b1", "c1", "a2"]


def spend(desk, **seconds: float) -> None:
    for client, used in seconds.items():
        desk.queue.credit.spend(client, used, active=1)


def test_clients_in_debt_come_later_and_earn_it_back(desk):
    desk = desk()
    spend(desk, a=FREE + 10.0, b=FREE - 1.0)
    for client in "abc":
        desk.push(client, f"{client}1")
    assert desk.order() == ["b1", "c1", "a1"], "clients without a debt are equal"
    credit = Credit(lambda: desk.now)
    credit.spend("a", FREE + 6.0, active=3)
    assert credit.of("a", 3) == pytest.approx(-6.0)
    desk.now += 4.0
    assert credit.of("a", 3) == pytest.approx(-6.0 + 4.0 * PART / 3)
    desk.now += 1000.0
    assert credit.of("a", 3) == FREE


def test_a_client_in_debt_is_delayed_while_others_are_active(desk):
    desk = desk()
    desk.push("a", "a1")
    spend(desk, a=FREE + 10.0)
    desk.queue.listening.update(["a1", "a2", "b1"])
    assert desk.queue.get_events() is not None, "no other client is active"
    spend(desk, b=0.1, c=0.1, d=0.1)
    desk.push("a", "a2")
    assert desk.queue.get_events() is None
    desk.push("b", "b1")
    desk.now = 1.0
    assert desk.queue.get_events()[0][0].session_hash == "b1", "other clients are not delayed"
    desk.now = 30.0
    assert desk.queue.get_events()[0][0].session_hash == "a2", "the delay ends"


def test_clients_whose_last_job_is_old_are_not_active(desk):
    desk = desk()
    spend(desk, b=0.1)
    desk.now = ACTIVE + 1
    spend(desk, a=FREE + 100.0)
    desk.push("a", "a1")
    desk.queue.listening["a1"] = 1
    assert desk.queue.get_events() is not None


def test_busy_clients_with_equal_use_are_not_delayed(desk):
    desk = desk()
    for second in range(100):
        desk.now = float(second)
        desk.queue.credit.spend(str(second % 10), 1.0, active=10)
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


def test_jobs_without_a_listener_come_last_and_are_dropped_with_a_message(desk):
    desk = desk(listen_seconds=10)
    desk.push("a", "unheard")
    desk.push("b", "heard")
    spend(desk, b=100.0)
    with desk.queue.listened("heard"):
        desk.now = 5.0
        desk.queue.sweep()
        assert desk.order() == ["heard", "unheard"]
        desk.now = 11.0
        desk.queue.sweep()
    assert desk.order() == ["heard"]
    *_, last = list(desk.queue.pending_messages_per_session["unheard"]._queue)
    assert last.output["error"] == UNHEARD


def test_a_full_queue_drops_jobs_without_a_listener_only(desk):
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


def test_a_clients_job_without_a_listener_is_replaced_by_its_next(desk):
    desk = desk(waiting=1)
    desk.push("a", "a1")
    assert desk.push("a", "a2").startswith("429"), "a listener may still connect"
    desk.now = 2.0
    assert len(desk.push("a", "a3")) == 32 and desk.order() == ["a3"]


def test_queued_large_bodies_are_limited_in_total(desk):
    desk = desk(queue_bytes=100, small_body=10)
    desk.push("a", "a1", 80)
    assert desk.push("b", "b1", 30).startswith("503 The page cannot take a large request")
    assert len(desk.push("b", "b1", 10)) == 32


def test_answers_of_gone_sessions_are_deleted_and_unread_ones_refuse_the_next_job(desk):
    desk = desk(result_seconds=60, listen_seconds=10, unread=3)
    desk.push("a", "gone")
    for _ in range(4):
        desk.queue.pending_messages_per_session["gone"].put_nowait(None)
    assert desk.push("a", "gone").startswith("429 This session has unread answers")
    for second in range(0, 90, 5):
        desk.now = float(second)
        desk.queue.sweep()
    assert not desk.queue.pending_messages_per_session
    assert not desk.queue.pending_event_ids_session and not desk.queue.event_ids_to_events


def test_clients_run_at_the_same_time_but_each_clients_jobs_take_turns(desk):
    desk, sessions = desk(), ("a1", "a2", "b1", "c1")
    for session in sessions:
        desk.push(session[0], session)
    queue = desk.queue.event_queue_per_concurrency_id["model"]
    queue.concurrency_limit, desk.queue.active_jobs = 2, []

    def end(number):
        del desk.queue.active_jobs[number]
        queue.current_concurrency -= 1

    def begun():
        """Return the session of the job that begins, None if none may."""
        if (found := desk.queue.get_events()) is None:
            desk.now += 1
            return None
        desk.queue.active_jobs.append(found[0])
        queue.current_concurrency += 1
        return found[0][0].session_hash

    with ExitStack() as stack:
        for session in sessions:
            stack.enter_context(desk.queue.listened(session))
        assert [begun() for _ in range(3)] == ["a1", "b1", None]
        end(1)
        assert [begun() for _ in range(2)] == ["c1", None]
        end(1)
        assert begun() is None, "a2 waits for a1"
        end(0)
        assert begun() == "a2"


def test_a_job_starts_with_a_listener_and_stops_without_one(desk):
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

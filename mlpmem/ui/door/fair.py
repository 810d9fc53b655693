"""A fair queue: clients that are out of computing time come after the others.

Gradio's queue is first-in, first-out, with no limit per client, and it runs jobs without a
listener. Here the queued jobs of each client are bounded, and a credit of computing seconds decides
its turn. A job starts when a client listens to its answer. Without a listener it is dropped, and so
are unread answers.

A running job is not interrupted, so a client that always has a queued job could keep the model busy
whenever others arrive. While other clients are active, each earns PART times its equal share of the
time. A client in debt is delayed until it has earned its debt back.
"""

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from fastapi import HTTPException
from gradio.data_classes import PredictBodyInternal
from gradio.queueing import Event, EventQueue, Queue
from gradio.server_messages import ProcessCompletedMessage

from mlpmem.ui.door.bounds import Bounds
from mlpmem.ui.door.routes import RefusedError
from mlpmem.ui.door.shares import client_of

FREE = 4.0  # seconds that any client may use without a delay
PART = 1.5  # times its equal share: what a client earns
ACTIVE = 60.0  # seconds after its last job that a client counts as active
LEFT = 2.0  # seconds that a job continues without a listener
LOOK = 0.01  # seconds between checks of a queue whose jobs are all delayed
JOB = 1.0  # seconds per job, until one was measured
UNHEARD = "The connection was lost, so the request was dropped. Send it again."
CLIENTS = 1000  # credits stored before full ones are deleted
SIZE = "mlpmem.bytes"  # key of a request's scope: bytes of its body


class Credit:
    """Computing seconds that each client may still use; below 0 it is in debt."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with no clients."""
        self._clock = clock
        self._credits: dict[str, tuple[float, float]] = {}  # client -> (seconds, when)
        self._ended: dict[str, float] = {}  # client -> end of its last job
        self.job = JOB  # average seconds per job

    def active(self) -> set[str]:
        """Return the clients with a job that ended within ACTIVE seconds."""
        since = self._clock() - ACTIVE
        self._ended = {client: when for client, when in self._ended.items() if when > since}
        return {*self._ended}

    def of(self, client: str, active: int) -> float:
        """Return a client's seconds: at most FREE, and it earns its part of the time."""
        seconds, when = self._credits.get(client, (FREE, self._clock()))
        return min(FREE, seconds + (self._clock() - when) * PART / max(1, active))

    def spend(self, client: str, seconds: float, active: int) -> None:
        """Subtract a finished job's seconds."""
        now = self._clock()
        self._credits[client] = (self.of(client, active) - seconds, now)
        self._ended[client] = now
        self.job += 0.1 * (seconds - self.job)
        if len(self._credits) > CLIENTS:
            credits = self._credits.items()
            self._credits = {c: v for c, v in credits if self.of(c, active) < FREE}


class FairQueue(Queue):
    """Gradio's queue with fair turns and limits per client; nothing in it grows without bound."""

    def __init__(
        self, blocks: Any, bounds: Bounds, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start empty."""
        super().__init__(
            live_updates=True, concurrency_count=blocks.max_threads, update_intervals=1,
            max_size=bounds.queue, blocks=blocks, default_concurrency_limit=1,
        )  # fmt: skip
        self.bounds, self._clock = bounds, clock
        self.credit = Credit(clock)
        self.begun: dict[str, float] = {}  # client -> start of its running job
        self.started: dict[str, float] = {}  # job id -> its start
        self.listening: Counter[str] = Counter()  # open streams per session
        self._quiet: dict[str, float] = {}  # session -> start of its inactivity
        self._look = 0.0  # time of the next check when all jobs were delayed

    def waiting(self) -> list[Event]:
        """Return all queued jobs."""
        return [event for q in self.event_queue_per_concurrency_id.values() for event in q.queue]

    def running(self) -> list[Event]:
        """Return all running jobs."""
        return [event for job in self.active_jobs if job for event in job]

    @contextmanager
    def listened(self, session: str) -> Iterator[None]:
        """Count a listener of a session."""
        self.listening[session] += 1
        try:
            yield
        finally:
            self.listening[session] -= 1
            if not self.listening[session]:
                del self.listening[session]

    async def push(self, body: Any, request: Any, username: str | None) -> tuple:
        """Queue a job; HTTPException(429) above its client's limit, (503) above the total limit.

        Jobs without a listener are dropped to make room, the client's own first.
        """
        client = client_of(request)
        unread = self.pending_messages_per_session.get(body.session_hash or "")
        if unread is not None and unread.qsize() > self.bounds.unread:
            raise HTTPException(429, "This session has unread answers. Read them, then try again.")
        own = [event for event in self.waiting() if client_of(event.request) == client]
        if len(own) >= self.bounds.waiting and not self._drop_unheard(own):
            raise HTTPException(
                429, f"{len(own)} of your requests are waiting already. Try again when one is done."
            )
        if len(self) >= self.bounds.queue:
            self._drop_unheard(self.waiting())
        size = request.scope.get(SIZE, 0)
        held = sum(event.request.scope.get(SIZE, 0) for event in self.waiting())
        if size > self.bounds.small_body and held + size > self.bounds.queue_bytes:
            raise HTTPException(503, "The page cannot take a large request now. Try again soon.")
        pushed = await super().push(body, request, username)
        if pushed[0]:
            self.event_ids_to_events[pushed[1]].enqueue_time = self._clock()
            for queue in self.event_queue_per_concurrency_id.values():
                self._arrange(queue)
                if queue.queue:
                    self.broadcast_estimations(queue.concurrency_id)
        return pushed

    @asynccontextmanager
    async def joined(self, function: int, data: list, request: Any) -> AsyncIterator[None]:
        """Queue a job while the context is open, as if its client listened; then drop it.

        For answers that do not come through Gradio's messages. RefusedError as `push` refuses.
        """
        body = PredictBodyInternal(data=data, fn_index=function)
        try:
            queued, name, _ = await self.push(body, request, None)
        except HTTPException as error:
            raise RefusedError(error.status_code, error.detail) from error
        if not queued:
            raise RefusedError(503, "The page has too many requests now. Try again soon.")
        event = self.event_ids_to_events[name]
        try:
            with self.listened(name):
                yield
        finally:
            self._drop(event)
            self.pending_messages_per_session.pop(name, None)
            self.pending_event_ids_session.pop(name, None)

    def get_events(self) -> tuple | None:
        """Return the next job of a client without a running one, None while all are delayed."""
        if (now := self._clock()) < self._look:
            return None
        for queue in self.event_queue_per_concurrency_id.values():
            limit = queue.concurrency_limit
            if queue.queue and (limit is None or queue.current_concurrency < limit):
                self._arrange(queue)
                busy = {client_of(event.request) for event in self.running()}
                free = [event for event in queue.queue if client_of(event.request) not in busy]
                if free and not self._delayed(free[0]):
                    queue.queue.remove(free[0])
                    return [free[0]], False, queue.concurrency_id
                self._look = now + LOOK
        return None

    def _active(self) -> set[str]:
        """Return the clients that have a job, or had one recently."""
        queued = {client_of(event.request) for event in self.waiting()}
        return self.credit.active() | {*self.begun} | queued

    def _delayed(self, event: Event) -> bool:
        """Return whether a job waits for a listener, or for its client's debt to end."""
        if not self.listening[event.session_hash]:
            return True
        active = len(self._active())
        return active > 1 and self.credit.of(client_of(event.request), active) < 0

    def _arrange(self, queue: EventQueue) -> None:
        """Sort the jobs of one queue by turn.

        A client's second job is sorted as if its first had run. Clients without a debt are equal,
        so that a series of new clients does not overtake the others.
        """
        before: Counter[str] = Counter()
        turns: dict[str, tuple] = {}
        now, active = self._clock(), len(self._active())
        for event in sorted(queue.queue, key=lambda event: event.enqueue_time):
            client = client_of(event.request)
            running = now - self.begun[client] if client in self.begun else 0.0
            left = self.credit.of(client, active) - running
            debt = max(0.0, -left) + before[client] * self.credit.job
            turns[event._id] = (not self.listening[event.session_hash], debt, event.enqueue_time)
            before[client] += 1
        queue.queue.sort(key=lambda event: turns[event._id])

    async def process_events(self, events: list, batch: bool, begin_time: float, fn: Any) -> None:
        """Run jobs and subtract their seconds from their client's credit."""
        client, begin = client_of(events[0].request), self._clock()
        self.begun[client] = begin
        self.started |= {event._id: begin for event in events}
        try:
            await super().process_events(events, batch, begin_time, fn)
        finally:
            self.begun.pop(client, None)
            self.credit.spend(client, self._clock() - begin, len(self._active()))
            for event in events:
                self.started.pop(event._id, None)
                if event.session_hash == event._id:  # a program's call: its session ends here
                    self.server_app.state_holder.forget(event._id)

    def compute_analytics_summary(self, records: Any) -> dict:
        """Return {}: the summary is never read, and it grows with the number of jobs."""
        return {}

    def _heard(self, event: Event) -> bool:
        """Return whether a job has a listener, or is so new that one may still connect."""
        young = self._clock() - event.enqueue_time < 1.0
        return young or self.listening[event.session_hash] > 0

    def _drop_unheard(self, events: list[Event]) -> bool:
        """Drop the oldest of these jobs without a listener; return whether there was one."""
        for event in sorted(events, key=lambda event: event.enqueue_time):
            if not self._heard(event):
                self._drop(event)
                return True
        return False

    def _drop(self, event: Event) -> None:
        """Remove a job and send the reason to its session; a running job stops at its next step."""
        with suppress(KeyError):  # its session has expired
            message = ProcessCompletedMessage(output={"error": UNHEARD}, success=False)
            self.send_message(event, message)
        event.alive = False
        queue = self.event_queue_per_concurrency_id[event.concurrency_id].queue
        if event in queue:
            queue.remove(event)
        self.event_ids_to_events.pop(event._id, None)
        named = self.pending_event_ids_session.get(event.session_hash, set())
        named.discard(event._id)

    def sweep(self) -> None:
        """Drop jobs without a listener, and the answers of sessions that are gone."""
        now = self._clock()
        for event in self.running():
            begun = self.started.get(event._id, now)
            if not self.listening[event.session_hash] and now - begun > LEFT:
                self._drop(event)
        for event in self.waiting():
            age = now - event.enqueue_time
            if not self.listening[event.session_hash] and age > self.bounds.listen_seconds:
                self._drop(event)
        busy = {event.session_hash for event in (*self.waiting(), *self.running())}
        known = {*self.pending_messages_per_session, *self.pending_event_ids_session}
        quiet = {name for name in known if not self.listening[name] and name not in busy}
        self._quiet = {name: self._quiet.get(name, now) for name in quiet}
        for name in [n for n, since in self._quiet.items()
                     if now - since > self.bounds.result_seconds]:  # fmt: skip
            self.pending_messages_per_session.pop(name, None)
            self.pending_event_ids_session.pop(name, None)
            del self._quiet[name]

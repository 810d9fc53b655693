"""The queue: whoever has had least computing time is next, and nobody waits unheard.

Gradio's queue serves jobs as they come, however many one client has, and whether or not anybody
still listens. Here a client has a share of waiting jobs; its computing seconds, which fade within
minutes, decide whose turn is next; a job begins when somebody listens to its answer, and is dropped
if nobody does, with everything that waits to be read by somebody who has gone.

A job that runs is not interrupted, so a client that always has one waiting would have one running
whenever somebody else comes. While others are about, its next job is therefore held back until what
it has used has faded to a bit more than its part.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fastapi import HTTPException
from gradio.queueing import Event, EventQueue, Queue
from gradio.server_messages import ProcessCompletedMessage

from mlpmem.ui.door.bounds import Bounds
from mlpmem.ui.door.shares import client_of

FADES = 60.0  # seconds after which half of what a client has used counts no more
WINDOW = FADES / 0.693  # seconds that count of a client which computes all the time
FREE = 6.0  # seconds that any client may use at once
PART = 1.5  # times its part: from there on a client is held back
LEFT = 2.0  # seconds that a job runs on without a listener
LOOK = 0.01  # seconds between two looks at a queue where all are held back
JOB = 1.0  # seconds a job takes, while nothing is known
UNHEARD = "Nobody listened to the answer, so it was dropped. Ask again."
SIZE = "mlpmem.bytes"  # of a request's scope: what its body takes while it waits


class Used:
    """Computing seconds by client, fading."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nobody."""
        self._clock = clock
        self._seconds: dict[str, tuple[float, float]] = {}  # client -> (seconds, when)
        self.job = JOB  # seconds a job takes, on average

    def of(self, client: str) -> float:
        """Return the seconds that count at present."""
        seconds, when = self._seconds.get(client, (0.0, 0.0))
        return seconds * 0.5 ** ((self._clock() - when) / FADES)

    def about(self) -> set[str]:
        """Return the clients of which a job ended lately."""
        since = self._clock() - FADES
        return {client for client, (_, when) in self._seconds.items() if when > since}

    def add(self, client: str, seconds: float) -> None:
        """Count a job that is over."""
        self._seconds[client] = (self.of(client) + seconds, self._clock())
        self.job += 0.1 * (seconds - self.job)
        if len(self._seconds) > 1000:
            self._seconds = {c: v for c, v in self._seconds.items() if self.of(c) > 0.01}


class FairQueue(Queue):
    """Gradio's queue with turns and shares; of everything that it keeps by name there is an end."""

    def __init__(
        self, blocks: Any, bounds: Bounds, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin empty."""
        super().__init__(
            live_updates=True, concurrency_count=blocks.max_threads, update_intervals=1,
            max_size=bounds.queue, blocks=blocks, default_concurrency_limit=1,
        )  # fmt: skip
        self.bounds, self._clock = bounds, clock
        self.used = Used(clock)
        self.begun: dict[str, float] = {}  # client -> when its running job began
        self.started: dict[str, float] = {}  # the same by the job's id
        self.listening: Counter[str] = Counter()  # streams by session
        self._quiet: dict[str, float] = {}  # session -> since when nothing happens in it
        self._look = 0.0  # when to look again where all were held back

    def waiting(self) -> list[Event]:
        """Return all jobs that wait."""
        return [event for q in self.event_queue_per_concurrency_id.values() for event in q.queue]

    def running(self) -> list[Event]:
        """Return all jobs that run."""
        return [event for job in self.active_jobs if job for event in job]

    @contextmanager
    def listened(self, session: str) -> Iterator[None]:
        """Note that somebody listens to a session."""
        self.listening[session] += 1
        try:
            yield
        finally:
            self.listening[session] -= 1
            if not self.listening[session]:
                del self.listening[session]

    async def push(self, body: Any, request: Any, username: str | None) -> tuple:
        """Let a job wait; HTTPException(429) beyond its client's share, (503) beyond everybody's.

        Jobs that nobody listens to make room, the client's own before others'.
        """
        client = client_of(request)
        unread = self.pending_messages_per_session.get(body.session_hash or "")
        if unread is not None and unread.qsize() > self.bounds.unread:
            raise HTTPException(429, "Read what was answered before, then ask again.")
        own = [event for event in self.waiting() if client_of(event.request) == client]
        if len(own) >= self.bounds.waiting and not self._drop_unheard(own):
            raise HTTPException(
                429, f"{len(own)} requests of yours wait already. Let one finish, then ask again."
            )
        if len(self) >= self.bounds.queue:
            self._drop_unheard(self.waiting())
        size = request.scope.get(SIZE, 0)
        held = sum(event.request.scope.get(SIZE, 0) for event in self.waiting())
        if size > self.bounds.small_body and held + size > self.bounds.queue_bytes:
            raise HTTPException(503, "There is no room for a large request now. Try again soon.")
        found = await super().push(body, request, username)
        if found[0]:
            self.event_ids_to_events[found[1]].enqueue_time = self._clock()
            for queue in self.event_queue_per_concurrency_id.values():
                self._arrange(queue)
                if queue.queue:
                    self.broadcast_estimations(queue.concurrency_id)
        return found

    def get_events(self) -> tuple | None:
        """Return the next job: the first of whoever has used least, None while it is held back."""
        if (now := self._clock()) < self._look:
            return None
        for queue in self.event_queue_per_concurrency_id.values():
            limit = queue.concurrency_limit
            if queue.queue and (limit is None or queue.current_concurrency < limit):
                self._arrange(queue)
                if not self._held_back(queue.queue[0]):
                    return [queue.queue.pop(0)], False, queue.concurrency_id
                self._look = now + LOOK
        return None

    def _held_back(self, event: Event) -> bool:
        """Return whether a job waits for a listener, or until its client's use has faded."""
        if not self.listening[event.session_hash]:
            return True
        client = client_of(event.request)
        about = self.used.about() | {client, *self.begun}
        about |= {client_of(event.request) for event in self.waiting()}
        part = PART * WINDOW / len(about)
        return len(about) > 1 and self.used.of(client) > max(FREE, part)

    def _arrange(self, queue: EventQueue) -> None:
        """Put the jobs of one queue in the order of their turns.

        A client's second job counts as if its first had run. Up to FREE all are alike, so that ever
        new clients do not come before those who have been here for a while.
        """
        before: Counter[str] = Counter()
        turns: dict[str, tuple] = {}
        now = self._clock()
        for event in sorted(queue.queue, key=lambda event: event.enqueue_time):
            client = client_of(event.request)
            running = now - self.begun[client] if client in self.begun else 0.0
            used = max(FREE, self.used.of(client) + running) + before[client] * self.used.job
            turns[event._id] = (not self.listening[event.session_hash], used, event.enqueue_time)
            before[client] += 1
        queue.queue.sort(key=lambda event: turns[event._id])

    async def process_events(self, events: list, batch: bool, begin_time: float, fn: Any) -> None:
        """Run jobs, and count their seconds for their client."""
        client, begin = client_of(events[0].request), self._clock()
        self.begun[client] = begin
        self.started |= {event._id: begin for event in events}
        try:
            await super().process_events(events, batch, begin_time, fn)
        finally:
            self.begun.pop(client, None)
            self.used.add(client, self._clock() - begin)
            for event in events:
                self.started.pop(event._id, None)
                if event.session_hash == event._id:  # a program's call: nothing comes after it
                    self.server_app.state_holder.forget(event._id)

    def compute_analytics_summary(self, records: Any) -> dict:
        """Return nothing: nobody reads it, and it grows with the number of jobs."""
        return {}

    def _heard(self, event: Event) -> bool:
        """Return whether somebody listens to a job, or may be about to."""
        young = self._clock() - event.enqueue_time < 1.0
        return young or self.listening[event.session_hash] > 0

    def _drop_unheard(self, events: list[Event]) -> bool:
        """Drop the oldest of these jobs that nobody listens to; return whether there was one."""
        for event in sorted(events, key=lambda event: event.enqueue_time):
            if not self._heard(event):
                self._drop(event)
                return True
        return False

    def _drop(self, event: Event) -> None:
        """Take a job out, and leave word; one that runs stops at its next step."""
        with suppress(KeyError):  # nothing is kept for its session any more
            word = ProcessCompletedMessage(output={"error": UNHEARD}, success=False)
            self.send_message(event, word)
        event.alive = False
        queue = self.event_queue_per_concurrency_id[event.concurrency_id].queue
        if event in queue:
            queue.remove(event)
        self.event_ids_to_events.pop(event._id, None)
        named = self.pending_event_ids_session.get(event.session_hash, set())
        named.discard(event._id)

    def sweep(self) -> None:
        """Drop jobs that nobody has listened to for long, and what is kept for whoever left."""
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

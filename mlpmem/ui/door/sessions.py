"""Session states, bounded per client; closed sessions are evicted first.

Gradio keeps the most recent sessions of all clients, so one client can evict everyone else's. It
also stores the last value of every component for links that this page does not have: 30 ms and
0.4 MB per session, which are saved here.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import Any

from gradio.state_holder import SessionState, StateHolder

from mlpmem.ui.door.bounds import Bounds
from mlpmem.ui.door.routes import RefusedError

IDLE = 3600.0  # seconds after its last request until a closed session is deleted


class Unkept(dict):
    """A mapping that contains every key and stores nothing."""

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: Any) -> dict:
        return {}

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class LightState(SessionState):
    """A session's state without a copy of every component's last value."""

    def __init__(self, blocks: Any) -> None:
        """Start without values."""
        self.blocks_config = copy(blocks.default_config)
        self.config_values = Unkept()
        self.state_data: dict[int, Any] = {}
        self._state_ttl: dict = {}
        self.is_closed = False
        self.STATE_TTL_WHEN_CLOSED = IDLE


@dataclass
class Visit:
    """A session's client, its count of open streams, and the time of its last request."""

    client: str
    open: int
    last: float


class Sessions(StateHolder):
    """The states of sessions, and their clients."""

    def __init__(self, bounds: Bounds, clock: Callable[[], float] = time.monotonic) -> None:
        """Start empty."""
        super().__init__()
        self.bounds, self._clock = bounds, clock
        self.visits: OrderedDict[str, Visit] = OrderedDict()  # least recently used first

    def set_blocks(self, blocks: Any) -> None:
        """Store the states of a page, with room for all admitted sessions."""
        super().set_blocks(blocks)
        self.capacity = 2 * self.bounds.all_sessions  # a program's call has a state while it runs

    def __getitem__(self, session_id: str) -> SessionState:
        """Return a session's state, creating it if needed."""
        if session_id not in self.session_data:
            self.session_data[session_id] = LightState(self.blocks)
        return super().__getitem__(session_id)

    def admit(self, session: str, client: str) -> None:
        """Admit a session's request; a client above its share loses its oldest closed session.

        RefusedError(429) if all its sessions are open. Above the total limit, the client with the
        most sessions loses a closed one.
        """
        if session in self.visits:
            visit = self.visits[session]
            visit.client, visit.last = client, self._clock()
            self.visits.move_to_end(session)
            return
        own = [name for name, visit in self.visits.items() if visit.client == client]
        if len(own) >= self.bounds.sessions:
            closed = [name for name in own if not self.visits[name].open]
            if not closed:
                raise RefusedError(
                    429,
                    f"One address can have {self.bounds.sessions} pages open here, and yours has. "
                    "Close one.",
                )
            self.forget(closed[0])
        while len(self.visits) >= self.bounds.all_sessions:
            if (name := self._evictable()) is None:
                raise RefusedError(503, "The page has as many visitors as it can take. Wait a bit.")
            self.forget(name)
        self.visits[session] = Visit(client, 0, self._clock())

    def _evictable(self) -> str | None:
        """Return the oldest closed session of the client with the most, None if all are open."""
        count: dict[str, int] = {}
        for visit in self.visits.values():
            count[visit.client] = count.get(visit.client, 0) + 1
        closed = [name for name, visit in self.visits.items() if not visit.open]
        return max(closed, key=lambda name: count[self.visits[name].client], default=None)

    def opened(self, session: str, change: int) -> None:
        """Register that a stream of a session opened (1) or closed (-1)."""
        if session in self.visits:
            visit = self.visits[session]
            visit.open, visit.last = visit.open + change, self._clock()

    def forget(self, session: str) -> None:
        """Delete a session; its state's delete callbacks run."""
        self.visits.pop(session, None)
        with suppress(KeyError):
            self.delete_state(session)
        self.session_data.pop(session, None)
        self.time_last_used.pop(session, None)

    def sweep(self) -> None:
        """Delete closed sessions without a request for IDLE seconds."""
        until = self._clock() - IDLE
        for name, visit in list(self.visits.items()):
            if not visit.open and visit.last < until:
                self.forget(name)

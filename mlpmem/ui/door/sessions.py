"""What is kept of visitors by session: bounded by client, closed ones first, light.

Gradio keeps the last sessions of all, whoever they are of, so that one client's erase everybody's.
It also keeps the last value of every component of a session, for links that this page does not
have: 30 ms and 0.4 MB a session, which are not spent here.
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

IDLE = 3600.0  # seconds after its last request that a closed session is kept at most


class Unkept(dict):
    """A mapping that has everything and keeps nothing."""

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: Any) -> dict:
        return {}

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class LightState(SessionState):
    """A session's state without a copy of every component's last value."""

    def __init__(self, blocks: Any) -> None:
        """Begin without values."""
        self.blocks_config = copy(blocks.default_config)
        self.config_values = Unkept()
        self.state_data: dict[int, Any] = {}
        self._state_ttl: dict = {}
        self.is_closed = False
        self.STATE_TTL_WHEN_CLOSED = IDLE


@dataclass
class Visit:
    """Whose a session is, how many of its requests are open, when it was last heard of."""

    client: str
    open: int
    last: float


class Sessions(StateHolder):
    """The states of sessions, and whose they are."""

    def __init__(self, bounds: Bounds, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin empty."""
        super().__init__()
        self.bounds, self._clock = bounds, clock
        self.visits: OrderedDict[str, Visit] = OrderedDict()  # the one used last comes last

    def set_blocks(self, blocks: Any) -> None:
        """Keep the states of a page, as many as the door lets in."""
        super().set_blocks(blocks)
        self.capacity = 2 * self.bounds.all_sessions  # a program's call has one while it runs

    def __getitem__(self, session_id: str) -> SessionState:
        """Return a session's state, made where there is none."""
        if session_id not in self.session_data:
            self.session_data[session_id] = LightState(self.blocks)
        return super().__getitem__(session_id)

    def admit(self, session: str, client: str) -> None:
        """Note a request of a session; a client beyond its share loses its oldest closed one.

        RefusedError(429) where all its sessions are open. Where all of everybody's places are
        taken, whoever has most sessions loses a closed one.
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
                    429, f"{len(own)} pages of yours are open here. Close one, then reload this."
                )
            self.forget(closed[0])
        while len(self.visits) >= self.bounds.all_sessions:
            if (name := self._least()) is None:
                raise RefusedError(503, "The page has too many visitors now. Try again soon.")
            self.forget(name)
        self.visits[session] = Visit(client, 0, self._clock())

    def _least(self) -> str | None:
        """Return the oldest closed session of whoever has most, None where all are open."""
        number: dict[str, int] = {}
        for visit in self.visits.values():
            number[visit.client] = number.get(visit.client, 0) + 1
        closed = [name for name, visit in self.visits.items() if not visit.open]
        return max(closed, key=lambda name: number[self.visits[name].client], default=None)

    def opened(self, session: str, change: int) -> None:
        """Note that a stream of a session opens (1) or closes (-1)."""
        if session in self.visits:
            visit = self.visits[session]
            visit.open, visit.last = visit.open + change, self._clock()

    def forget(self, session: str) -> None:
        """Forget a session, and what its state names elsewhere."""
        self.visits.pop(session, None)
        with suppress(KeyError):
            self.delete_state(session)
        self.session_data.pop(session, None)
        self.time_last_used.pop(session, None)

    def sweep(self) -> None:
        """Forget what has been closed and quiet for long."""
        until = self._clock() - IDLE
        for name, visit in list(self.visits.items()):
            if not visit.open and visit.last < until:
                self.forget(name)

"""Connections without a whole request: closed if its headers take too long, or if there are many.

uvicorn limits neither. The door sees a request only after its headers, so the sweep looks at the
server's own connections.
"""

import time
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

from mlpmem.ui.door.bounds import Bounds


class Connections:
    """The connections that wait for a request's headers, each since when."""

    def __init__(
        self, bounds: Bounds, proxied: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start with none; if proxied, all connections come from one address, a proxy's."""
        self._bounds, self._proxied, self._clock = bounds, proxied, clock
        # (connection, its last request) -> time when it was first seen without a new one
        self._since: dict[tuple[Any, Any], float] = {}

    def sweep(self, connections: Iterable[Any]) -> None:
        """Close the waiting ones of a server's connections that are beyond a bound.

        The bounds are seconds for the headers, and waiting connections of one address, of which
        the oldest are closed. One that is still closing at the next sweep is cut.
        """
        now = self._clock()
        waiting = [one for one in map(_last_request, connections) if one is not None]
        self._since = {one: self._since.get(one, now) for one in waiting}
        late = [one for one in waiting if now - self._since[one] > self._bounds.body_seconds]
        for connection, _ in late if self._proxied else [*late, *self._excess()]:
            transport = connection.transport
            transport.abort() if transport.is_closing() else transport.close()

    def _excess(self) -> list[tuple[Any, Any]]:
        """Return the oldest waiting connections of every address that has too many."""
        by_address = sorted(self._since, key=lambda one: (_address(one), -self._since[one]))
        groups = (list(group) for _, group in groupby(by_address, _address))
        return [one for group in groups for one in group[self._bounds.connections :]]


def _last_request(connection: Any) -> tuple[Any, Any] | None:
    """Return (connection, its last request or None), None while that is being answered."""
    last = getattr(connection, "cycle", None)
    return (connection, last) if last is None or last.response_complete else None


def _address(one: tuple[Any, Any]) -> str:
    """Return the address that a connection comes from."""
    return str((one[0].client or ("",))[0])

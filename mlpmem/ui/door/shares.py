"""Who a client is, and its share of what everybody shares: requests a second, at once, and bytes.

A client is an address; of IPv6 its network of 64 bits, which is what one household has. Behind a
proxy everybody has the proxy's address: told to trust it (`--trust-proxy`), the address that its
X-Forwarded-For names counts. A browser can write into that header too, but only to the left of what
the proxies add: with MLPMEM_PROXIES=N the N-th from the right counts, otherwise the rightmost that
is not of a private network.
"""

import asyncio
import ipaddress
import os
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from mlpmem.ui.door.bounds import Bounds
from mlpmem.ui.door.routes import RefusedError, Route

KEY = "mlpmem.client"  # of a request's scope
MOST_CLIENTS = 10_000  # that a rate is remembered of
FILES = 10  # times the rate: Gradio's own files, of which a page loads seventy
INNER = tuple(
    map(
        ipaddress.ip_network,
        ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8",
         "169.254.0.0/16", "::1/128", "fc00::/7", "fe80::/10"),
    )
)  # fmt: skip


def client_of(request: Any) -> str:
    """Return the client of a request that came through the door, "" for any other."""
    inner = getattr(request, "request", request)  # of gradio's own Request
    scope = getattr(inner, "scope", None)
    return str(scope.get(KEY, "")) if isinstance(scope, Mapping) else ""


def address(scope: Mapping[str, Any], trusted: bool, proxies: int = 0) -> str:
    """Return the client of a request's scope."""
    peer = (scope.get("client") or ("",))[0]
    if trusted:
        texts = [v.decode("latin-1") for n, v in scope["headers"] if n == b"x-forwarded-for"]
        named = [part.strip() for part in ",".join(texts).split(",")]
        if chosen := _chosen([part for part in named if _parsed(part) is not None], proxies):
            return _key(chosen)
    return _key(peer)


def _chosen(named: list[str], proxies: int) -> str:
    """Return the address that counts of those that a header names, "" without any."""
    if proxies:
        return named[-proxies] if len(named) >= proxies else ""
    outer = [a for a in named if not any(_parsed(a) in network for network in INNER)]
    return (outer or named or [""])[-1]


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an address, None where the text is none; a port after it is left out."""
    text = text.strip("[]") if text.count(":") > 1 else text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text[:64])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _key(text: str) -> str:
    found = _parsed(text)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found or text[:64])


def told_to_trust(environment: Mapping[str, str]) -> bool:
    """Return whether a proxy's header is trusted: by MLPMEM_TRUST_PROXY, or in a Space.

    A Space is reached through its host's proxy and in no other way.
    """
    said = environment.get("MLPMEM_TRUST_PROXY", "").strip().lower()
    return said not in ("0", "false", "no") if said else bool(environment.get("SPACE_ID"))


def proxies(environment: Mapping[str, str]) -> int:
    """Return MLPMEM_PROXIES, 0 where it is not a number."""
    said = environment.get("MLPMEM_PROXIES", "").strip()
    return int(said) if said.isdecimal() else 0


class Shares:
    """What every client uses at present."""

    def __init__(self, bounds: Bounds, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nobody."""
        self.bounds, self._clock = bounds, clock
        self.trusted, self.proxies = told_to_trust(os.environ), proxies(os.environ)
        self.open: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._wanted: Counter[str] = Counter()
        self._rates: OrderedDict[tuple[str, bool], tuple[float, float]] = OrderedDict()

    def client(self, scope: Mapping[str, Any]) -> str:
        """Return the client of a request."""
        return address(scope, self.trusted, self.proxies)

    def count(self, client: str, route: Route) -> None:
        """Count a request; RefusedError(429) where there are more a second than a client's share.

        A bucket of tokens: it holds two seconds' worth, and fills as time goes by.
        """
        rate = self.bounds.rate * (FILES if route.file else 1)
        now, key = self._clock(), (client, route.file)
        left, last = self._rates.pop(key, (2 * rate, now))
        left = min(2 * rate, left + rate * (now - last))
        self._rates[key] = (max(0.0, left - 1), now)
        while len(self._rates) > MOST_CLIENTS:
            self._rates.popitem(last=False)
        if left < 1:
            raise RefusedError(
                429, f"That is more than {rate:g} requests a second. Wait a moment, then go on."
            )

    @contextmanager
    def opened(self, client: str) -> Iterator[None]:
        """Count a request while it is answered; RefusedError(429) beyond a client's share."""
        if self.open[client] >= self.bounds.open:
            raise RefusedError(
                429, f"{self.bounds.open} requests of yours are open. Close a tab, then go on."
            )
        if self.open.total() >= self.bounds.all_open:
            raise RefusedError(503, "The page has too many visitors now. Try again soon.")
        with _counted(self.open, client, 1):
            yield

    @contextmanager
    def holding(self, client: str, size: int) -> Iterator[None]:
        """Count a body while it is read and answered; RefusedError(429) beyond a share.

        Small ones are let in when large ones fill the room.
        """
        if self.held[client] + size > self.bounds.held_bytes:
            raise RefusedError(429, "Your last requests are still being read. Wait, then go on.")
        small = size <= self.bounds.small_body
        if not small and self.held.total() + size > self.bounds.all_held_bytes:
            raise RefusedError(503, "There is no room for a large request now. Try again soon.")
        with _counted(self.held, client, size):
            yield

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Wait until few enough of a client's posts are worked on.

        Gradio has forty threads for everybody; one client's posts could take them all.
        """
        turns = self._turns.setdefault(client, asyncio.Semaphore(self.bounds.at_once))
        try:
            with _counted(self._wanted, client, 1):
                async with turns:
                    yield
        finally:
            if client not in self._wanted:
                self._turns.pop(client, None)


@contextmanager
def _counted(counter: Counter, key: str, number: int) -> Iterator[None]:
    """Add to a counter for a while; what has come to nothing is forgotten."""
    counter[key] += number
    try:
        yield
    finally:
        counter[key] -= number
        if counter[key] <= 0:
            del counter[key]

"""Who a client is, and its limits: requests per second, requests at the same time, and bytes.

A client is an IPv4 address, or an IPv6 network of 64 bits, which is what one household has. Behind
a proxy all visitors have the proxy's address; with `--trust-proxy` X-Forwarded-For names the
client. A browser can forge that header, but only to the left of what the proxies add. With
MLPMEM_PROXIES=N the N-th address from the right is used, otherwise the rightmost public one.
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

KEY = "mlpmem.client"  # key of a request's scope
MOST_CLIENTS = 10_000  # with a stored request rate
BURST = 20  # seconds of a client's byte rate that may come at once
FILES = 10  # times the rate for Gradio's own files, of which a page loads seventy
INNER = tuple(
    map(
        ipaddress.ip_network,
        ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8",
         "169.254.0.0/16", "::1/128", "fc00::/7", "fe80::/10"),
    )
)  # fmt: skip


def client_of(request: Any) -> str:
    """Return the client that the door stored in a request, "" for any other object."""
    inner = getattr(request, "request", request)  # gradio's Request wraps starlette's
    scope = getattr(inner, "scope", None)
    return str(scope.get(KEY, "")) if isinstance(scope, Mapping) else ""


def address(scope: Mapping[str, Any], trusted: bool, proxies: int = 0) -> str:
    """Return the client of a request's scope."""
    peer = (scope.get("client") or ("",))[0]
    if trusted:
        texts = [v.decode("latin-1") for n, v in scope["headers"] if n == b"x-forwarded-for"]
        parts = [part.strip() for part in ",".join(texts).split(",")]
        if chosen := _chosen([part for part in parts if _parsed(part) is not None], proxies):
            return _key(chosen)
    return _key(peer)


def _chosen(addresses: list[str], proxies: int) -> str:
    """Return the client's address among those of a header, "" without any."""
    if proxies:
        return addresses[-proxies] if len(addresses) >= proxies else ""
    outer = [a for a in addresses if not any(_parsed(a) in network for network in INNER)]
    return (outer or addresses or [""])[-1]


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address in a text, without its port, or None."""
    text = text.strip("[]") if text.count(":") > 1 else text.partition(":")[0]
    try:
        parsed = ipaddress.ip_address(text[:64])
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _key(text: str) -> str:
    parsed = _parsed(text)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed or text[:64])


def trusts_proxy(environment: Mapping[str, str]) -> bool:
    """Return whether X-Forwarded-For is trusted: by MLPMEM_TRUST_PROXY, or in a Space.

    A Space can be reached through its host's proxy only.
    """
    setting = environment.get("MLPMEM_TRUST_PROXY", "").strip().lower()
    return setting not in ("0", "false", "no") if setting else bool(environment.get("SPACE_ID"))


def proxies(environment: Mapping[str, str]) -> int:
    """Return MLPMEM_PROXIES, 0 if it is not a number."""
    setting = environment.get("MLPMEM_PROXIES", "").strip()
    return int(setting) if setting.isdecimal() else 0


class Shares:
    """The present use of every client."""

    def __init__(self, bounds: Bounds, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with no clients."""
        self.bounds, self._clock = bounds, clock
        self.trusted, self.proxies = trusts_proxy(os.environ), proxies(os.environ)
        self.open: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._wanted: Counter[str] = Counter()
        self._rates: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def client(self, scope: Mapping[str, Any]) -> str:
        """Return the client of a request."""
        return address(scope, self.trusted, self.proxies)

    def count(self, client: str, route: Route) -> None:
        """Count a request; RefusedError(429) above the client's rate, after a burst."""
        rate = self.bounds.rate * (FILES if route.file else 1)
        if not self._take((client, "files" if route.file else "requests"), 1, rate, 2 * rate):
            raise RefusedError(
                429, f"At most {rate:g} requests per second are allowed. Try again in a moment."
            )

    def weigh(self, client: str, size: int) -> None:
        """Count a body's bytes; RefusedError(429) above the client's byte rate, after a burst."""
        rate = self.bounds.byte_rate
        if not self._take((client, "bytes"), size, rate, BURST * rate):
            raise RefusedError(
                429, f"At most {rate / 1e6:g} MB per second are allowed. Try again soon."
            )

    def _take(self, key: tuple[str, str], number: float, rate: float, most: float) -> bool:
        """Take from a token bucket that fills by rate up to most; return whether it had enough."""
        now = self._clock()
        left, last = self._rates.pop(key, (most, now))
        left = min(most, left + rate * (now - last))
        self._rates[key] = (left - number if left >= number else left, now)
        while len(self._rates) > MOST_CLIENTS:
            self._rates.popitem(last=False)
        return left >= number

    @contextmanager
    def opened(self, client: str) -> Iterator[None]:
        """Count a request while it is answered; RefusedError(429) above the client's share."""
        if self.open[client] >= self.bounds.open:
            raise RefusedError(
                429, f"You have {self.bounds.open} open requests. Close a tab, then try again."
            )
        if self.open.total() >= self.bounds.all_open:
            raise RefusedError(503, "The page has too many visitors now. Try again soon.")
        with _counted(self.open, client, 1):
            yield

    @contextmanager
    def holding(self, client: str, size: int) -> Iterator[None]:
        """Count a body while it is read and answered; RefusedError(429) above the client's share.

        The total limit holds for large bodies only.
        """
        if self.held[client] + size > self.bounds.held_bytes:
            raise RefusedError(429, "Your last requests are still being read. Try again soon.")
        small = size <= self.bounds.small_body
        if not small and self.held.total() + size > self.bounds.all_held_bytes:
            raise RefusedError(503, "The page cannot take a large request now. Try again soon.")
        with _counted(self.held, client, size):
            yield

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Wait until fewer than `at_once` of a client's posts are processed.

        Gradio has forty threads for all clients; one client's posts could take them all.
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
    """Add to a counter within the context; an entry of 0 is deleted."""
    counter[key] += number
    try:
        yield
    finally:
        counter[key] -= number
        if counter[key] <= 0:
            del counter[key]

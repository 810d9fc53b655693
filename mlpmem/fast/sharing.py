"""How many runs compute at the same time, so that each takes an equal share of the threads.

Two streams with one thread each decode more tokens per second than two that compete for all cores
(mlpmem/bench/README.md). It imports no torch, since the page counts runs before torch is loaded.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.Lock()
_running = 0


@contextmanager
def sharing() -> Iterator[None]:
    """Count a run while the context is open."""
    global _running
    with _LOCK:
        _running += 1
    try:
        yield
    finally:
        with _LOCK:
            _running -= 1


def share(threads: int) -> int:
    """Return a run's share of so many threads: at least 1, and 0 of 0."""
    return min(threads, max(1, threads // max(1, _running)))

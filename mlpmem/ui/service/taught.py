"""Memories that visitors taught: each is its visitor's alone, and goes with the session.

They are on a shelf as own texts are, bounded in bytes and in time, by secret ids. One is taught at
a time: others wait in the page's queue.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.ui.door.bounds import BOUNDS
from mlpmem.ui.service.service import Service

_LESSON = threading.Lock()  # held while a memory is taught; an abandoned lesson holds it to its end


@dataclass(frozen=True)
class TaughtMemory:
    """A copy of a service's memory that learned a visitor's sentences."""

    service: Service
    memory: Any
    sentences: tuple[str, ...]
    bytes: int


class TaughtService:
    """A service whose model has a visitor's taught memory; all else is the service's."""

    def __init__(self, service: Service, copy: TaughtMemory) -> None:
        """Wrap a service for one request."""
        self.plain, self._copy, self.taught = service, copy, len(copy.sentences)

    @cached_property
    def model(self) -> Any:
        """Return the model with the taught memory and the datastore that there is now."""
        return self.plain.model.with_taught(self._copy.memory)

    def __getattr__(self, name: str) -> Any:
        """Return anything else of the service."""
        return getattr(self.plain, name)


def plain_model(service: Any) -> Any:
    """Return a service's model as it was loaded, without what a visitor taught."""
    return service.plain.model if isinstance(service, TaughtService) else service.model


def check_teachable(model: Any) -> None:
    """Raise MlpMemError for a model whose memory cannot be taught here."""
    if "memory" not in model.systems:
        raise MlpMemError("This model has no memory to teach. The datastore knows your sentences.")
    if getattr(model, "leased", False):
        raise MlpMemError("This page lends its GPU for seconds only, so it teaches no memory.")


def lesson(model: Any, sentences: Sequence[str], stop: Any) -> Iterator[Any]:
    """Yield the progress of teaching; the last has the memory. It waits until no other is taught.

    MlpMemError if stop is set.
    """
    from mlpmem.teaching.lesson import lesson_for, teach

    while not _LESSON.acquire(timeout=0.1):
        if stop.is_set():
            raise MlpMemError("Another memory is being taught. Try again in a minute.")
    try:
        yield from teach(
            model, sentences, lesson_for(model, BOUNDS.teach_seconds, BOUNDS.teach_reading), stop
        )
    finally:
        _LESSON.release()

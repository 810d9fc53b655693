"""Datastores of visitors' own texts: bounded in bytes and in time, found by a secret id alone.

A session keeps the id; nothing here knows whose it is. Whoever has used theirs least recently goes
first when room is needed. A timer frees what has expired, whether or not anybody comes by.
"""

import io
import threading
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.formats import valid
from mlpmem.retrieval.texts import TEXT_KINDS, decoded, kind_of, opened, titled_texts

MAX_BYTES = 2_000_000  # of one text
SHELF_BYTES = 600_000_000  # of all datastores together
SECONDS = 3600.0
KINDS = (*TEXT_KINDS, ".gz")  # .xz is not taken: what it unpacks in may be gigabytes


@dataclass(frozen=True)
class Own:
    """One visitor's datastore."""

    title: str
    store: Any
    ends: float  # of the shelf's clock
    note: str = ""  # what was left out of the text


class Shelf:
    """Keeps datastores by id until their time is over or their room is needed."""

    def __init__(
        self,
        most: int = SHELF_BYTES,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin empty."""
        self.most, self.seconds, self.clock = most, seconds, clock
        self._kept: OrderedDict[str, Own] = OrderedDict()
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def add(self, title: str, store: Any, note: str = "") -> str:
        """Keep a datastore and return its id."""
        key = uuid.uuid4().hex
        with self._lock:
            self._kept[key] = Own(title, store, self.clock() + self.seconds, note)
            self._sweep()
            while len(self._kept) > 1 and self._bytes() > self.most:
                self._kept.popitem(last=False)
            self._wake()
        return key

    def get(self, key: str) -> Own | None:
        """Return what an id stands for, None once it has gone."""
        with self._lock:
            self._sweep()
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def drop(self, key: str) -> None:
        """Forget a datastore; an id that is not there is no error."""
        with self._lock:
            self._kept.pop(key, None)

    def left(self, own: Own) -> float:
        """Return for how many seconds it is still kept."""
        return max(0.0, own.ends - self.clock())

    def _wake(self) -> None:
        """Set the timer for the one whose time is over first."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._kept:
            return
        soonest = min(self._kept.values(), key=lambda own: own.ends)
        self._timer = threading.Timer(self.left(soonest), self._expire)
        self._timer.daemon = True
        self._timer.start()

    def _expire(self) -> None:
        with self._lock:
            self._sweep()
            self._wake()

    def _sweep(self) -> None:
        now = self.clock()
        for key in [key for key, own in self._kept.items() if own.ends <= now]:
            del self._kept[key]

    def _bytes(self) -> int:
        return sum(own.store.bytes for own in self._kept.values())


def read_upload(path: Path) -> tuple[str, str]:
    """Return (name, content) of an uploaded file; MlpMemError says what is wrong with it."""
    if kind_of(path) not in TEXT_KINDS or path.suffix.lower() not in KINDS:
        raise MlpMemError(f"{path.name} is not one of {', '.join(KINDS)} files. Convert it first.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise MlpMemError(f"{path.name} has {size / 1e6:.1f} MB; at most 2 MB are taken. Cut it.")
    with opened(path) as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise MlpMemError(f"{path.name} unpacks to more than 2 MB; at most 2 MB are taken. Cut it.")
    return path.name, "".join(decoded(io.BytesIO(raw), path.name))


def titled(name: str, content: str, counts: Counter | None = None) -> list[tuple[str, str]]:
    """Return (title, text) of every document; MlpMemError for no text, a bad line or too much."""
    if len(content.encode("utf-8", "replace")) > MAX_BYTES:
        raise MlpMemError("The text has more than 2 MB. Cut it.")
    pairs = [(valid(title[:200]), text) for title, text in titled_texts(name, content, counts)]
    if not pairs:
        raise MlpMemError("There is no text. Paste some, or upload a file with some.")
    return pairs

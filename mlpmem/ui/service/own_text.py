"""Datastores of visitors' own texts: bounded in bytes and in time, found by a secret id alone.

A session keeps the id; all that is known of its owner is the client that it counts for. A client
with more than its share loses its oldest; where everybody's together are too much, whoever has most
does. A timer frees what has expired, whether or not anybody comes by.
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
from mlpmem.ui.door.bounds import BOUNDS

MAX_BYTES = BOUNDS.text_bytes  # of one text
MOST = f"{MAX_BYTES / 1e6:g} MB"
KINDS = (*TEXT_KINDS, ".gz")  # .xz is not taken: what it unpacks in may be gigabytes


@dataclass(frozen=True)
class Own:
    """One visitor's datastore."""

    title: str
    store: Any
    ends: float  # of the shelf's clock
    note: str = ""  # what was left out of the text
    client: str = ""


class Shelf:
    """Keeps datastores by id until their time is over or their room is needed."""

    def __init__(
        self,
        most: int = BOUNDS.shelf_bytes,
        seconds: float = BOUNDS.text_seconds,
        clock: Callable[[], float] = time.monotonic,
        share: int = BOUNDS.client_text_bytes,
    ) -> None:
        """Begin empty."""
        self.most, self.seconds, self.clock, self.share = most, seconds, clock, share
        self._kept: OrderedDict[str, Own] = OrderedDict()
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def add(self, title: str, store: Any, note: str = "", client: str = "") -> str:
        """Keep a client's datastore and return its id; this one is kept even if it is too large."""
        key = uuid.uuid4().hex
        with self._lock:
            self._sweep()
            others = [k for k, own in self._kept.items() if own.client == client]
            self._kept[key] = Own(title, store, self.clock() + self.seconds, note, client)
            while others and self._bytes(client) > self.share:
                del self._kept[others.pop(0)]
            while len(self._kept) > 1 and self._bytes() > self.most:
                del self._kept[self._heaviest(key)]
            self._wake()
        return key

    def _heaviest(self, new: str) -> str:
        """Return whose client has most, but for the new one: the one used longest ago of them."""
        rest = [key for key in self._kept if key != new]
        return max(rest, key=lambda key: self._bytes(self._kept[key].client))

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

    def _bytes(self, client: str | None = None) -> int:
        """Return what a client's datastores take, everybody's for None."""
        owns = self._kept.values()
        return sum(own.store.bytes for own in owns if client in (None, own.client))


def read_upload(path: Path) -> tuple[str, str]:
    """Return (name, content) of an uploaded file; MlpMemError says what is wrong with it."""
    if kind_of(path) not in TEXT_KINDS or path.suffix.lower() not in KINDS:
        raise MlpMemError(f"{path.name} is not one of {', '.join(KINDS)} files. Convert it first.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise MlpMemError(f"{path.name} has {size / 1e6:.1f} MB; at most {MOST} are taken. Cut it.")
    with opened(path) as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise MlpMemError(
            f"{path.name} unpacks to more than {MOST}; at most {MOST} are taken. Cut it."
        )
    return path.name, "".join(decoded(io.BytesIO(raw), path.name))


def titled(name: str, content: str, counts: Counter | None = None) -> list[tuple[str, str]]:
    """Return (title, text) of every document; MlpMemError for no text, a bad line or too much."""
    if len(content.encode("utf-8", "replace")) > MAX_BYTES:
        raise MlpMemError(f"The text has more than {MOST}. Cut it.")
    pairs = [(valid(title[:200]), text) for title, text in titled_texts(name, content, counts)]
    if not pairs:
        raise MlpMemError("There is no text. Paste some, or upload a file with some.")
    return pairs

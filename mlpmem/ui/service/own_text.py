"""Datastores of visitors' own texts: limited in bytes and in time, looked up by a secret id only.

A session keeps the id; of its owner only the client is stored. A client above its share loses its
oldest datastore. Above the total limit, the client with the most bytes loses one. A timer frees
expired datastores.
"""

import io
import threading
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpmem.errors import MlpMemError
from mlpmem.formats import valid
from mlpmem.retrieval.converted.converted import KINDS as CONVERTED
from mlpmem.retrieval.converted.converted import absent, converted
from mlpmem.retrieval.texts import TEXT_KINDS, decoded, kind_of, opened, titled_texts
from mlpmem.ui.door.bounds import BOUNDS

MAX_BYTES = BOUNDS.text_bytes  # per text
MOST = f"{MAX_BYTES / 1e6:g} MB"
PASTED = "your text"  # title of a pasted text
KINDS = (*TEXT_KINDS, ".gz")  # without .xz, which may need gigabytes to unpack


@dataclass(frozen=True)
class OwnText:
    """One visitor's datastore."""

    title: str
    store: Any
    ends: float  # time of expiry, by the shelf's clock
    note: str = ""  # what was skipped in the text
    client: str = ""
    failed: tuple[str, ...] = ()  # why files were left out


class Shelf:
    """Keeps datastores by id until they expire or are evicted."""

    def __init__(
        self,
        most: int = BOUNDS.shelf_bytes,
        seconds: float = BOUNDS.text_seconds,
        clock: Callable[[], float] = time.monotonic,
        share: int = BOUNDS.client_text_bytes,
    ) -> None:
        """Start empty."""
        self.most, self.seconds, self.clock, self.share = most, seconds, clock, share
        self._texts: OrderedDict[str, OwnText] = OrderedDict()
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def add(
        self,
        title: str,
        store: Any,
        note: str = "",
        client: str = "",
        failed: Sequence[str] = (),
    ) -> str:
        """Store a client's datastore and return its id; the newest is kept at any size."""
        key = uuid.uuid4().hex
        with self._lock:
            self._sweep()
            others = [k for k, own in self._texts.items() if own.client == client]
            ends = self.clock() + self.seconds
            self._texts[key] = OwnText(title, store, ends, note, client, tuple(failed))
            while others and self._bytes(client) > self.share:
                del self._texts[others.pop(0)]
            while len(self._texts) > 1 and self._bytes() > self.most:
                del self._texts[self._heaviest(key)]
            self._set_timer()
        return key

    def _heaviest(self, new: str) -> str:
        """Return the key used longest ago of the client with most bytes, other than `new`."""
        others = [key for key in self._texts if key != new]
        return max(others, key=lambda key: self._bytes(self._texts[key].client))

    def get(self, key: str) -> OwnText | None:
        """Return an id's datastore, None if it is gone."""
        with self._lock:
            self._sweep()
            if key in self._texts:
                self._texts.move_to_end(key)
            return self._texts.get(key)

    def drop(self, key: str) -> None:
        """Delete a datastore; an unknown id is not an error."""
        with self._lock:
            self._texts.pop(key, None)

    def left(self, own: OwnText) -> float:
        """Return the seconds until it expires."""
        return max(0.0, own.ends - self.clock())

    def _set_timer(self) -> None:
        """Set the timer to the next expiry."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._texts:
            return
        soonest = min(self._texts.values(), key=lambda own: own.ends)
        self._timer = threading.Timer(self.left(soonest), self._expire)
        self._timer.daemon = True
        self._timer.start()

    def _expire(self) -> None:
        with self._lock:
            self._sweep()
            self._set_timer()

    def _sweep(self) -> None:
        now = self.clock()
        for key in [key for key, own in self._texts.items() if own.ends <= now]:
            del self._texts[key]

    def _bytes(self, client: str | None = None) -> int:
        """Return the bytes of a client's datastores, of all for None."""
        owns = self._texts.values()
        return sum(own.store.bytes for own in owns if client in (None, own.client))


def readable() -> tuple[str, ...]:
    """Return the kinds of files that can be read here."""
    return tuple(kind for kind in KINDS if kind not in absent())


def read_upload(path: Path, name: str = "") -> tuple[str, str]:
    """Return (name, content) of an uploaded file; MlpMemError for a wrong type or size."""
    name, kind = name or path.name, kind_of(path)
    if kind not in TEXT_KINDS or path.suffix.lower() not in KINDS:
        raise MlpMemError(f"{name} must be one of {', '.join(readable())}. Convert it first.")
    most = BOUNDS.upload_body if kind in CONVERTED else MAX_BYTES
    size, least = path.stat().st_size, f"{most / 1e6:g} MB"
    if size > most:
        raise MlpMemError(f"{name} must have at most {least}; got {size / 1e6:.1f} MB. Cut it.")
    with opened(path) as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise MlpMemError(f"{name} unpacks to more than {least}, the limit. Cut it.")
    if kind in CONVERTED:
        return name, converted(raw, kind, name, BOUNDS.convert_seconds, MAX_BYTES)
    return name, "".join(decoded(io.BytesIO(raw), name))


def titled(name: str, content: str, counts: Counter | None = None) -> list[tuple[str, str]]:
    """Return (title, text) of every document; MlpMemError for an empty, malformed or large text."""
    if len(content.encode("utf-8", "replace")) > MAX_BYTES:
        what = "The text" if name == PASTED else name
        raise MlpMemError(f"{what} must have at most {MOST}; it has more. Cut it.")
    pairs = [(valid(title[:200]), text) for title, text in titled_texts(name, content, counts)]
    if not pairs:
        what = "The text" if name == PASTED else name
        raise MlpMemError(f"{what} is empty. Paste a text, or choose other files.")
    return pairs

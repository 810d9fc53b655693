"""GGUF files: the header, checked, and the location of every weight.

One file holds a decoder's weights, tokenizer and chat template; `assemble.py` builds a model from
it. Nothing is memory-mapped: rows are read on demand from the file that was opened, which stays the
same if another takes its name.
"""

import hashlib
import io
import math
import os
import struct
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from mlpmem.errors import MlpMemError
from mlpmem.formats import MAGIC
from mlpmem.model.gguf.blocks import KINDS, Groups, Kind, dense, groups

VERSIONS = (2, 3)
NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
STRING, ARRAY = 8, 9
NESTED = 8  # lists within lists, at most
CHUNK = 2**22  # numbers of a tensor made dense at once
MOST = 2**31  # entries of a list, or tensors; a larger count means a damaged file
AGAIN = "download or convert it again"


class GgufFile:
    """An open file, whose content must not change."""

    def __init__(self, path: Path) -> None:
        """Open a file; OSError if that fails. It is closed when nothing refers to this object."""
        self.path, self._lock = path, threading.Lock()
        number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, number)
        self._number, self._raw = number, io.FileIO(number, closefd=False)
        self._stamp = _stamp(os.fstat(number))

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return self._stamp[1]

    def read(self, start: int, buffer: bytearray) -> bool:
        """Fill a buffer from byte `start` on; return whether the file is that long."""
        rest = memoryview(buffer)
        with self._lock:
            self._raw.seek(start)
            while rest and (count := self._raw.readinto(rest)):
                rest = rest[count:]
        self.check()
        return not rest

    def reader(self) -> BinaryIO:
        """Return a buffered reader from the first byte on; one at a time."""
        os.lseek(self._number, 0, os.SEEK_SET)
        return io.BufferedReader(io.FileIO(self._number, closefd=False))

    def check(self) -> None:
        """Raise MlpMemError if the file was written to since it was opened."""
        if _stamp(os.fstat(self._number)) != self._stamp:
            raise self._changed()

    def check_path(self) -> None:
        """Raise MlpMemError if the path leads to another file by now."""
        if not self.path.exists() or _stamp(self.path.stat()) != self._stamp:
            raise self._changed()

    def sha256(self) -> str:
        """Return the sha256 of the content."""
        content = hashlib.sha256()
        for start in range(0, self.size, CHUNK):
            buffer = bytearray(min(CHUNK, self.size - start))
            self.read(start, buffer)
            content.update(buffer)
        return content.hexdigest()

    def _changed(self) -> MlpMemError:
        return MlpMemError(
            f"decoder: {self.path.name} was changed or replaced while it was read; load it again"
        )

    def __deepcopy__(self, memo: dict) -> "GgufFile":
        return self


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Return what differs for another file, or after a write."""
    return status.st_ino, status.st_size, status.st_mtime_ns


class Place(NamedTuple):
    """The location of a tensor in a file."""

    shape: tuple[int, ...]
    kind: Kind
    start: int  # bytes from the start of the file

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) // self.kind.block * self.kind.bytes


@dataclass(frozen=True)
class Header:
    """Metadata and tensor locations, from the part before the weights."""

    file: GgufFile
    values: Mapping[str, Any]  # metadata, including long lists
    places: Mapping[str, Place]

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def architecture(self) -> str:
        """Return llama.cpp's name of the family."""
        return str(self.values.get("general.architecture", ""))

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value whose name begins with the architecture."""
        return self.values.get(f"{self.architecture}.{name}", default)


@dataclass(frozen=True)
class Blocks:
    """The quantised rows of a linear layer, still in the file."""

    file: GgufFile
    place: Place
    order: Tensor | None  # of the layer's rows, None for the file's order

    @property
    def bits(self) -> int:
        """Return the bits per number."""
        return self.place.kind.bits

    def read(self) -> Groups:
        raw = read_rows(self.file, self.place, 0, _rows(self.place)[0])
        return groups(raw if self.order is None else raw[self.order], self.place.kind)


def read_rows(file: GgufFile, place: Place, first: int, last: int) -> Tensor:
    """Return the bytes of a tensor's rows first .. last - 1, (rows, row bytes) uint8."""
    rows, size = last - first, _rows(place)[1]
    buffer = bytearray(rows * size)
    if not file.read(place.start + first * size, buffer):
        raise wrong(file.path, "it is truncated")
    return torch.frombuffer(buffer, dtype=torch.uint8).view(rows, size)


def read_header(path: str | Path) -> Header:
    """Return a file's header; MlpMemError if the file is damaged or not supported."""
    path = Path(path)
    try:
        header = _header(GgufFile(path))
    except (struct.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise wrong(path, "its header is truncated or altered") from error
    except OSError as error:
        raise MlpMemError(f"decoder: cannot read {path.name} ({error.strerror})") from error
    parts = header.values.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise MlpMemError(
            f"decoder: {path.name} is one of {parts} parts of a model; merge them first with "
            "llama.cpp's `llama-gguf-split --merge`"
        )
    tokens = header.values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or "tokenizer.ggml.model" not in header.values:
        raise MlpMemError(
            f"decoder: {path.name} has no tokenizer; convert the model again with its tokenizer"
        )
    return header


def dense_rows(header: Header, name: str) -> Iterator[tuple[int, Tensor]]:
    """Yield (index of the first row, rows (R, C) float32) of a tensor in small parts."""
    place = header.places[name]
    rows, _ = _rows(place)
    step = max(1, CHUNK // place.shape[-1])
    for first in range(0, rows, step):
        yield (
            first,
            dense(read_rows(header.file, place, first, min(rows, first + step)), place.kind),
        )


def plain(header: Header, name: str) -> Tensor:
    """Return a small tensor as one float32 vector."""
    return torch.cat([rows for _, rows in dense_rows(header, name)]).view(-1)


def parameters_in(path: Path, packed: bool = False) -> int:
    """Return the number of parameters in a file; when packed, a tied head counts twice."""
    places = read_header(path).places
    sizes = {name: math.prod(place.shape) for name, place in places.items()}
    tied = packed and "output.weight" not in sizes
    return sum(sizes.values()) + (sizes.get("token_embd.weight", 0) if tied else 0)


def _header(opened: GgufFile) -> Header:
    """Return the header of an open file."""
    path, file, size = opened.path, opened.reader(), opened.size
    if file.read(4) != MAGIC:
        raise wrong(path, "it does not begin with GGUF")
    version, tensors, count = struct.unpack("<IQQ", file.read(20))
    if version not in VERSIONS:
        raise MlpMemError(
            f"decoder: {path.name} is GGUF version {version}; use a file of version 2 or 3 "
            "with little-endian numbers"
        )
    if max(tensors, count) > MOST:
        raise struct.error
    values = {}
    for _ in range(count):
        name = _string(file, size)
        values[name] = _value(file, struct.unpack("<I", file.read(4))[0], size)
    rows = []
    for _ in range(tensors):
        name, (dimensions,) = _string(file, size), struct.unpack("<I", file.read(4))
        if dimensions > 8:
            raise struct.error
        shape = struct.unpack(f"<{dimensions}Q", file.read(8 * dimensions))[::-1]
        rows.append((name, shape, *struct.unpack("<IQ", file.read(12))))
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise struct.error
    begin = -(-file.tell() // alignment) * alignment
    places = {row[0]: _place(path, row, begin, size) for row in rows}
    opened.check()
    return Header(opened, values, places)


def _place(path: Path, row: tuple, begin: int, size: int) -> Place:
    """Return a tensor's location; MlpMemError if its kind is unknown or the file too short."""
    name, shape, number, offset = row
    if number not in KINDS:
        known = ", ".join(kind.name for kind in KINDS.values())
        raise MlpMemError(
            f"decoder: {path.name} stores {name} in an unsupported kind of block (ggml type "
            f"{number}); use a file whose weights are {known}, such as Q4_K_M or Q8_0"
        )
    place = Place(shape, KINDS[number], begin + offset)
    if not shape or min(shape) < 1 or math.prod(shape) > 2**40 or shape[-1] % place.kind.block:
        raise wrong(path, f"{name} has the impossible shape {list(shape)}")
    if place.start + place.bytes > size:
        raise wrong(
            path, f"{name} needs {place.start + place.bytes:,} bytes, the file has {size:,}"
        )
    return place


def _string(file: BinaryIO, size: int) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > size:
        raise struct.error
    text = file.read(length)
    if len(text) < length:
        raise struct.error
    return text.decode("utf-8")


def _value(file: BinaryIO, kind: int, size: int, depth: int = 0) -> Any:
    if kind == STRING:
        return _string(file, size)
    if kind in NUMBERS:
        code = NUMBERS[kind]
        return struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0]
    if kind != ARRAY or depth > NESTED:
        raise struct.error
    inner, count = struct.unpack("<IQ", file.read(12))
    if count > min(size, MOST):
        raise struct.error
    if inner in NUMBERS:
        code = f"<{count}{NUMBERS[inner]}"
        return list(struct.unpack(code, file.read(struct.calcsize(code))))
    return [_value(file, inner, size, depth + 1) for _ in range(count)]


def wrong(path: Path, why: str) -> MlpMemError:
    return MlpMemError(f"decoder: {path.name} cannot be read as a GGUF file: {why}; {AGAIN}")


def one_line(error: Exception) -> str:
    """Return the message of another library's error as one short line."""
    return " ".join(str(error).split())[:200]


def _rows(place: Place) -> tuple[int, int]:
    """Return the number of rows and the bytes per row."""
    rows = math.prod(place.shape[:-1])
    return rows, place.bytes // rows

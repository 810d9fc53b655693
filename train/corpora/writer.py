"""Streams documents to a folder that `Documents` loads; they are never held in memory."""

import json
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.lib import format as npy


class ArrayWriter:
    """A one-dimensional .npy file that grows; `close` completes its header."""

    def __init__(self, path: Path, dtype: np.dtype | type) -> None:
        """Begin an empty array."""
        self.dtype, self.length = np.dtype(dtype), 0
        self._file = path.open("w+b")
        self._header()

    def append(self, values: np.ndarray | list[int]) -> None:
        """Add values, any sequence of numbers that dtype holds."""
        values = np.asarray(values, self.dtype)
        self._file.write(values.tobytes())
        self.length += len(values)

    def close(self) -> None:
        """Write the length into the header, which numpy pads for this purpose."""
        header = self._header()
        size = self._file.seek(0, 2)
        assert size == header + self.length * self.dtype.itemsize, (size, header, self.length)
        self._file.close()

    def _header(self) -> int:
        """Write the header for the current length; return its size in bytes."""
        self._file.seek(0)
        descr = npy.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.length,)}
        npy.write_array_header_1_0(self._file, header)
        return self._file.tell()


class ListWriter:
    """A .json file of one list, written item by item."""

    def __init__(self, path: Path) -> None:
        """Begin an empty list."""
        self._file = path.open("w", encoding="utf-8")
        self._separator = "["

    def append(self, item: object) -> None:
        """Add one item."""
        self._file.write(self._separator + json.dumps(item, ensure_ascii=False))
        self._separator = ", "

    def close(self) -> None:
        """End the list."""
        self._file.write("]" if self._separator == ", " else "[]")
        self._file.close()


class DocumentWriter:
    """Writes documents one after another; a `with` statement completes the files."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        """Begin a folder; token ids take two bytes if vocab_size allows it."""
        folder.mkdir(parents=True, exist_ok=True)
        small = vocab_size <= 2**16
        self.tokens = ArrayWriter(folder / "tokens.npy", np.uint16 if small else np.int32)
        self.offsets = ArrayWriter(folder / "offsets.npy", np.int64)
        self.document_of = ArrayWriter(folder / "document_of.npy", np.int32)
        self.titles, self.groups = (ListWriter(folder / f"{n}.json") for n in ("titles", "groups"))
        self.offsets.append([0])
        self.documents = 0

    def begin(self, title: str, group: str) -> None:
        """Begin a document, to which the following passages belong."""
        self.titles.append(title)
        self.groups.append(group)
        self.documents += 1

    def extend(self, ids: np.ndarray | list[int]) -> None:
        """Add token ids to the open passage."""
        self.tokens.append(ids)

    def end_passage(self) -> None:
        """Close the open passage."""
        self.offsets.append([self.tokens.length])
        self.document_of.append([self.documents - 1])

    def __enter__(self) -> "DocumentWriter":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete all files."""
        for writer in (self.tokens, self.offsets, self.document_of, self.titles, self.groups):
            writer.close()

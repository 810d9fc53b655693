"""Keys in shards: several .npy files that read as one array (N, D), larger than memory if need be.

A folder has keys-00000.npy, keys-00001.npy ... and shards.json, which lists their entries and
hashes. The files are mapped, so keys larger than memory are read in blocks.
"""

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mlpmem.errors import MlpMemError
from mlpmem.formats import check_kinds, read_json
from mlpmem.retrieval.documents import open_array

INDEX = "shards.json"
RUN = 64  # mean run of entries in one shard from which they are read in the given order
OPEN = 64  # shards mapped at once; a process may open a few hundred files


class Shard(NamedTuple):
    """One file of keys."""

    file: str
    entries: int
    sha256: str


class ShardedKeys:
    """Shards of float16 keys end to end, indexed by entry like an array.

    A slice within one shard is a view of its map; any other result is a copy.
    """

    ndim = 2
    dtype = np.dtype(np.float16)

    def __init__(self, paths: Sequence[Path], entries: Sequence[int], size: int) -> None:
        """Use these files, with the entries of each and the size D of a key."""
        self.paths = list(paths)
        self.starts = np.concatenate([[0], np.cumsum(entries, dtype=np.int64)])  # (shards + 1,)
        self.shape = int(self.starts[-1]), size
        self._part = lru_cache(OPEN)(self._map)

    def __len__(self) -> int:
        """Return N."""
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Return the size of all keys."""
        return len(self) * self.shape[1] * self.dtype.itemsize

    def _map(self, shard: int) -> np.ndarray:
        """Return one shard, mapped from disk; MlpMemError if it is damaged."""
        path, entries = self.paths[shard], int(np.diff(self.starts)[shard])
        try:
            part = open_array(path)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise MlpMemError(
                    f"datastore: cannot open {path.name}: this process has too many open files. "
                    "Raise the limit (ulimit -n), or make larger shards (shard_mib)"
                ) from error
            raise _damaged(path, str(error)) from error
        except ValueError as error:
            raise _damaged(path, str(error)) from error
        if part.shape != (entries, self.shape[1]) or part.dtype != self.dtype:
            listed = f"{(entries, self.shape[1])} {self.dtype}"
            raise _damaged(path, f"it must hold {listed}; got {part.shape} {part.dtype}")
        return part

    def check(self) -> None:
        """Raise MlpMemError unless every shard exists in its listed shape."""
        for shard in range(len(self.paths)):
            self._part(shard)

    def __getitem__(self, at: Any) -> np.ndarray:
        """Return keys: (D,) for an int; (n, D) for a slice, list or array of entries."""
        if isinstance(at, slice):
            first, end, step = at.indices(len(self))
            if step == 1:
                return self._between(first, end)
            at = np.arange(first, end, step)
        at = np.asarray(at)
        if at.dtype == bool:
            at = np.flatnonzero(at)
        elif at.size == 0:
            at = at.astype(np.int64)
        return self._chosen(at)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all keys in memory, for a datastore that fits there."""
        return self._between(0, len(self)).astype(dtype or self.dtype, copy=bool(copy))

    def _between(self, first: int, end: int) -> np.ndarray:
        """Return the keys of entries first .. end - 1."""
        if end <= first:
            return np.empty((0, self.shape[1]), self.dtype)
        low, high = np.searchsorted(self.starts, [first, end - 1], side="right") - 1
        spans = [(shard, int(self.starts[shard])) for shard in range(low, high + 1)]
        parts = [self._part(s)[max(0, first - start) : end - start] for s, start in spans]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _chosen(self, at: np.ndarray) -> np.ndarray:
        """Return the keys of an array of entries; shards that alternate are read once each."""
        if at.size and not (-len(self) <= at.min() and at.max() < len(self)):
            raise IndexError(f"entries {at.min()} to {at.max()} of a datastore of {len(self)}")
        flat = at.reshape(-1) % max(1, len(self))
        order = None
        if len(self.paths) > 1 and len(self._turns(flat)) * RUN > len(flat):
            order = np.argsort(flat, kind="stable")
            flat = flat[order]
        out = np.empty((len(flat), self.shape[1]), self.dtype)
        into = torch.from_numpy(out)
        for start, end in pairwise([0, *self._turns(flat), len(flat)] if len(flat) else ()):
            shard = int(np.searchsorted(self.starts, flat[start], side="right")) - 1
            rows = flat[start:end] - self.starts[shard]
            part = torch.from_dlpack(self._part(shard))  # torch gathers with all threads
            torch.index_select(part, 0, torch.from_numpy(rows), out=into[start:end])
        if order is not None:
            out[order] = out.copy()
        return out.reshape(*at.shape, self.shape[1])

    def _turns(self, flat: np.ndarray) -> np.ndarray:
        """Return the indices at which the shard changes in an array of entries."""
        shards = np.searchsorted(self.starts, flat, side="right")
        return np.flatnonzero(np.diff(shards)) + 1


def shard_file(number: int) -> str:
    """Return the name of a shard."""
    return f"keys-{number:05d}.npy"


def write_shard(folder: Path, number: int, keys: np.ndarray) -> Shard:
    """Write keys (n, D) as one shard, to a new file that is then renamed; return the shard.

    Plain writes, unlike a map, give an OSError and no crash if the disk is full.
    """
    path = folder / shard_file(number)
    temporary = path.with_name(path.name + ".new")
    keys = np.ascontiguousarray(keys, np.float16)
    with temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(keys))
        file.write(keys.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
    with temporary.open("rb") as file:  # still in the page cache
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    os.replace(temporary, path)
    return Shard(path.name, len(keys), digest)


def write_index(folder: Path, size: int, shards: Sequence[Shard]) -> None:
    """Write shards.json atomically."""
    temporary = folder / f"{INDEX}.new"
    index = {"dtype": "float16", "size": size, "shards": [shard._asdict() for shard in shards]}
    temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / INDEX)


def read_index(folder: Path) -> tuple[int, list[Shard]]:
    """Return (D, shards) of a folder; MlpMemError if shards.json is missing or damaged."""
    try:
        index = read_json(folder / INDEX)
        shards = [Shard(**shard) for shard in index["shards"]]
        if any(Path(shard.file).name != shard.file for shard in shards):
            raise ValueError("it names a file outside its folder")
        return int(index["size"]), shards
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / INDEX, repr(error)) from error


def open_keys(folder: Path) -> ShardedKeys:
    """Return the keys of a folder; MlpMemError if a shard is missing or has another shape."""
    check_kinds(folder, "datastore")
    size, shards = read_index(folder)
    keys = ShardedKeys([folder / s.file for s in shards], [s.entries for s in shards], size)
    keys.check()
    return keys


def _damaged(path: Path, why: str) -> MlpMemError:
    """Return the error of a missing or damaged file."""
    return MlpMemError(
        f"datastore: cannot read {path.parent.name}/{path.name} ({why}); it is missing or damaged. "
        "Build or download the datastore again"
    )

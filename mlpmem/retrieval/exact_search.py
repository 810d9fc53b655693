"""Exact search by blocked products in float32, and the rescoring that every kind of search ends in.

Keys are walked in blocks, one matrix product each, and only scores above a query's threshold are
looked at again (top_k.py). The candidates are then scored on the true keys, so neither order nor
distances carry a product's rounding.
"""

from collections.abc import Callable, Iterator
from mmap import mmap

import numpy as np
import torch
from torch import Tensor

from mlpmem.errors import MlpMemError
from mlpmem.retrieval.shards import ShardedKeys
from mlpmem.retrieval.top_k import (
    LAST,
    Block,
    best_above,
    kth_largest,
    largest,
    nearest_first,
    pack,
    smallest_first,
    unpack,
)

EXTRA = 32  # candidates beyond k: rounding may have put them behind it
QUERY_BLOCK = 2048
BLOCK = {"cpu": 8192, "cuda": 65536}  # keys scored at once; a CPU's cache holds the float32 copies
SAMPLE = 16384  # keys at most whose mean stands for all of them
RESCORED = 2**21  # numbers of keys gathered at once: 8 MB, which stays near a CPU's cache


class ExactSearch:
    """Search of keys as they are stored; no copy is made but of the block that is scored."""

    def __init__(self, keys, device: torch.device | str = "cpu", budget: float = np.inf) -> None:
        """Hold keys (N, D) of any float dtype: an array, a memmap, a tensor, or shards.

        Shards are whatever has len, shape, dtype, slices and indexing by an array of entries. Keys
        of more than `budget` bytes in float32 are moved to a GPU one block at a time.
        """
        self.device = torch.device(device)
        self.keys = torch.as_tensor(writable(keys)) if isinstance(keys, np.ndarray) else keys
        if len(keys) > LAST:
            raise MlpMemError(
                f"search: {len(keys):,} entries are too many for an exact search; the limit is "
                f'{LAST:,}. Set search to "ivfsq" or "ivfpq" in [targets]'
            )
        rng = np.random.default_rng(0)
        chosen = rng.choice(len(keys), min(SAMPLE, len(keys) // 16), replace=False)
        sample = self._rows(np.sort(chosen) if len(chosen) else slice(0, len(keys)))
        self.mean = sample.mean(0)  # near it products lose fewer digits; distances do not change
        self._prepare(sample)
        if self.device.type != "cpu" and keys.shape[0] * keys.shape[1] * 4 <= budget:
            self.keys = torch.as_tensor(self.keys[:]).to(self.device)

    def search(self, queries, k: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (first query, distances (q, K) float32 squared L2, indices (q, K)) by blocks.

        K = min(k, N), nearest first. Equal distances are ordered by index: equal keys without
        fail, others where at most k + EXTRA share one distance. queries (Q, D) is like keys.
        """
        k = min(k, len(self.keys))
        for start in range(0, len(queries), QUERY_BLOCK):
            block = as_float(queries[start : start + QUERY_BLOCK], self.device)
            yield start, *rescore(self._rows, block, self.candidates(block, k + EXTRA), k)

    def candidates(self, queries: Tensor, k: int) -> Tensor:
        """Return indices (q, min(k, N)) of the best scores q.k - |k|^2 / 2, in no order."""
        k = min(k, len(self.keys))
        return self._candidates(queries.to(self.device).float() - self.mean, k)

    def _prepare(self, sample: Tensor) -> None:
        """Keep what a kind of search needs from a sample (n, D) of the keys."""

    def _candidates(self, queries: Tensor, k: int) -> Tensor:
        """Return candidates of centred queries; the first block of keys sets the thresholds."""
        size = max(k, BLOCK.get(self.device.type, BLOCK["cuda"]))
        first = self._scores(queries, slice(0, size))
        if size >= len(self.keys):
            places = torch.arange(len(self.keys), device=self.device)
            return unpack(largest(pack(first, places), k))[1]
        lowest = kth_largest(first, k)
        below = torch.nextafter(lowest, torch.full_like(lowest, -torch.inf))

        def beyond(thresholds: Tensor) -> Callable[[int], Block]:
            def block(start: int) -> Block:
                scores = self._scores(queries, slice(start, start + size)) if start else first
                return scores - thresholds[:, None], scores  # a sum of both would round equal ones

            return block

        return best_above(beyond, range(0, len(self.keys), size), below, k)[0]

    def _scores(self, queries: Tensor, at: slice) -> Tensor:
        """Return the scores (q, n) of centred queries and a block of keys."""
        block = self._rows(at).sub_(self.mean)
        halves = torch.linalg.vector_norm(block, dim=1).square_().mul_(0.5)
        return torch.addmm(halves, queries, block.T, beta=-1)

    def _rows(self, at) -> Tensor:
        """Return keys (n, D) of a slice or of indices (n,), float32 on the device, a fresh copy."""
        return rows_of(self.keys, at, self.device)


def rescore(
    rows_of: Callable[[Tensor], Tensor], queries: Tensor, indices: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Return (distances, indices) (q, k) of the nearest candidates, float32 squared L2.

    rows_of(indices (n,)) gives keys (n, D) in float32 that may be changed; an index of -1 is none.
    """
    distances, indices = [], smallest_first(indices)  # as they lie on disk
    some = max(1, RESCORED // (indices.shape[1] * queries.shape[1]))
    for own, at in zip(queries.split(some), indices.split(some), strict=True):
        keys = rows_of(at.flatten().clamp_min(0)).view(*at.shape, -1)
        keys -= own[:, None]
        apart = torch.linalg.vector_norm(keys, dim=-1).square()
        distances.append(apart.masked_fill_(at < 0, torch.inf))
    return nearest_first(torch.cat(distances), indices, k)


def rows_of(keys, at, device: torch.device) -> Tensor:
    """Return keys (n, D) of a slice or of indices (n,), float32 on the device, a fresh copy."""
    if isinstance(at, Tensor) and isinstance(keys, Tensor):
        return as_float(keys.index_select(0, at.to(keys.device)), device)
    return as_float(keys[at.cpu().numpy() if isinstance(at, Tensor) else at], device)


def as_float(rows, device: torch.device) -> Tensor:
    """Return a float32 copy on the device of rows of an array or tensor."""
    if not isinstance(rows, Tensor):
        rows = np.asarray(rows)
        rows = torch.from_numpy(rows if rows.flags.writeable else rows.copy())
    return rows.to(device).to(torch.float32, copy=True)


def writable(keys: np.ndarray | ShardedKeys | Tensor) -> np.ndarray | Tensor:
    """Return keys as torch takes them without a warning: maps copied on write, shards read."""
    if isinstance(keys, ShardedKeys):
        return np.array(keys)
    whole = isinstance(keys, np.memmap) and isinstance(keys.base, mmap)  # a part has its offset too
    if whole and not keys.flags.writeable:
        return np.memmap(keys.filename, keys.dtype, "c", keys.offset, keys.shape)
    return keys if isinstance(keys, Tensor) or keys.flags.writeable else keys.copy()

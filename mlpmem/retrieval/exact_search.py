"""Exact search by blocked products in float32, and the rescoring that ends every search.

Each block of keys takes one matrix product, and only scores above a query's threshold become
candidates (top_k.py). Candidates are then scored on the true keys, so a product's rounding changes
neither order nor distances.
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

EXTRA = 32  # candidates beyond k, which rounding may have ranked too low
QUERY_BLOCK = 2048
BLOCK = {"cpu": 8192, "cuda": 65536}  # keys scored at once; the float32 copies fit a CPU's cache
SAMPLE = 16384  # keys at most whose mean centres all
RESCORED = 2**21  # numbers gathered at once: 8 MB, about a CPU's cache


class ExactSearch:
    """Search of stored keys; only the block being scored is copied."""

    def __init__(self, keys, device: torch.device | str = "cpu", budget: float = np.inf) -> None:
        """Hold keys (N, D) of any float dtype: an array, a memmap, a tensor, or shards.

        Shards are any object with len, shape, dtype, slices and indexing by an array. Keys of more
        than `budget` bytes in float32 are moved to a GPU one block at a time.
        """
        self.device = torch.device(device)
        self.keys = torch.as_tensor(writable(keys)) if isinstance(keys, np.ndarray) else keys
        if len(keys) > LAST:
            raise MlpMemError(
                f"search: exact search takes at most {LAST:,} entries; got {len(keys):,}. "
                'Set search to "ivfsq" or "ivfpq" in [targets]'
            )
        rng = np.random.default_rng(0)
        chosen = rng.choice(len(keys), min(SAMPLE, len(keys) // 16), replace=False)
        sample = self._rows(np.sort(chosen) if len(chosen) else slice(0, len(keys)))
        self.mean = sample.mean(
            0
        )  # centred keys lose fewer digits in products, and distances do not change
        self._prepare(sample)
        if self.device.type != "cpu" and keys.shape[0] * keys.shape[1] * 4 <= budget:
            self.keys = torch.as_tensor(self.keys[:]).to(self.device)

    def search(self, queries, k: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (first query, distances (q, K) float32 squared L2, indices (q, K)) by blocks.

        K = min(k, N), nearest first. Equal distances are ordered by index: always for equal keys,
        and for others if at most k + EXTRA share one distance. queries (Q, D) are like keys.
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
        """Store what a subclass needs from a sample (n, D) of the keys."""

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
                return scores - thresholds[:, None], scores  # their sum would separate equal scores

            return block

        return best_above(beyond, range(0, len(self.keys), size), below, k)[0]

    def _scores(self, queries: Tensor, at: slice) -> Tensor:
        """Return the scores (q, n) of centred queries and a block of keys."""
        block = self._rows(at).sub_(self.mean)
        halves = torch.linalg.vector_norm(block, dim=1).square_().mul_(0.5)
        return torch.addmm(halves, queries, block.T, beta=-1)

    def _rows(self, at) -> Tensor:
        """Return a float32 copy on the device of keys (n, D) at a slice or indices (n,)."""
        return rows_of(self.keys, at, self.device)


def rescore(
    rows_of: Callable[[Tensor], Tensor], queries: Tensor, indices: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Return (distances, indices) (q, k) of the nearest candidates, float32 squared L2.

    rows_of(indices (n,)) returns a float32 copy of keys (n, D); index -1 is padding.
    """
    distances, indices = [], smallest_first(indices)  # ascending, as on disk
    rows = max(1, RESCORED // (indices.shape[1] * queries.shape[1]))
    for own, at in zip(queries.split(rows), indices.split(rows), strict=True):
        keys = rows_of(at.flatten().clamp_min(0)).view(*at.shape, -1)
        keys -= own[:, None]
        squared = torch.linalg.vector_norm(keys, dim=-1).square()
        distances.append(squared.masked_fill_(at < 0, torch.inf))
    return nearest_first(torch.cat(distances), indices, k)


def rows_of(keys, at, device: torch.device) -> Tensor:
    """Return a float32 copy on the device of keys (n, D) at a slice or indices (n,)."""
    if isinstance(at, Tensor) and isinstance(keys, Tensor):
        return as_float(keys.index_select(0, at.to(keys.device)), device)
    return as_float(keys[at.cpu().numpy() if isinstance(at, Tensor) else at], device)


def as_float(rows, device: torch.device) -> Tensor:
    """Return a float32 copy on the device of an array or tensor."""
    if not isinstance(rows, Tensor):
        rows = np.asarray(rows)
        rows = torch.from_numpy(rows if rows.flags.writeable else rows.copy())
    return rows.to(device).to(torch.float32, copy=True)


def writable(keys: np.ndarray | ShardedKeys | Tensor) -> np.ndarray | Tensor:
    """Return keys that torch accepts without a warning: maps as copy-on-write, shards as arrays."""
    if isinstance(keys, ShardedKeys):
        return np.array(keys)
    if isinstance(keys, Tensor) or keys.flags.writeable:
        return keys
    # a view of a map has the offset of the whole map, so it is copied
    if isinstance(keys, np.memmap) and isinstance(keys.base, mmap) and keys.filename is not None:
        return np.memmap(keys.filename, keys.dtype, "c", keys.offset, keys.shape)
    return keys.copy()

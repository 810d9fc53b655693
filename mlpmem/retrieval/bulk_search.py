"""Exact search of very many queries at once, on any device: where the targets come from.

Keys are walked in blocks, a matrix product each, and only scores above a query's threshold are kept
(a compaction instead of a top-k a block). The threshold comes from a sample of the keys and rises
when a query has found enough. It is part of the product, as columns beside the hidden state's, so
that what comes out is "how much better than the threshold": small where it matters, and there
bfloat16's rounding of the result is small too. Survivors are scored again in float32, so that
neither order nor distances carry that rounding.
"""

import time
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor

from mlpmem.errors import MlpMemError
from mlpmem.retrieval.retriever import Neighbours, writable
from mlpmem.retrieval.top_k import (
    LAST,
    Survivors,
    above,
    kth_largest,
    largest,
    pack,
    smallest_first,
    unpack,
)

EXTRA = 32  # candidates beyond k for the second scoring
QUERY_BLOCK = 2048
KEY_BLOCK = {"cpu": 2048, "cuda": 65536}
SAMPLE_GROUP = 16  # sampled keys whose best score stands for all
SAMPLE = 16384  # keys at most that set the first thresholds
PIECES = 3  # bfloat16 numbers that together hold a float32
BUDGET = 4 * 2**30  # bytes of coarse keys that are kept
RESCORED = 2**21  # numbers of keys gathered at once: 8 MB, which stays near a CPU's cache


class BulkSearch:
    """Keys prepared once: centred (distances do not change, rounding gets smaller) and halved."""

    def __init__(self, keys, device: torch.device | str = "cpu", budget: int = BUDGET) -> None:
        """Prepare keys (N, D) of any float dtype: an array, a memmap, a tensor, or shards.

        Shards are whatever has len, shape, dtype, slices and indexing by an array of entries.
        Coarse copies larger than `budget` bytes are made a block at a time in every pass.
        """
        self.device = torch.device(device)
        self.keys = torch.as_tensor(writable(keys)) if isinstance(keys, np.ndarray) else keys
        self.dtype = fast_dtype(self.device.type)
        self.block = KEY_BLOCK.get(self.device.type, KEY_BLOCK["cuda"])
        if len(keys) > LAST:
            raise MlpMemError(
                f"search: {len(keys):,} entries are too many to be searched exactly, {LAST:,} are "
                'the most; set search to "ivfsq" or "ivfpq" in [targets]'
            )
        luck = np.random.default_rng(0)
        chosen = luck.choice(len(keys), min(SAMPLE, len(keys) // 16), replace=False)
        sample = self._rows(np.sort(chosen) if len(chosen) else slice(0, len(keys)))
        self.mean = sample.mean(0)
        self.sample = self._key_columns(sample)
        if self.device.type != "cpu" and keys.shape[0] * keys.shape[1] * 4 <= budget:
            self.keys = torch.as_tensor(self.keys[:]).to(self.device)
        width = keys.shape[1] + 2 * PIECES
        fits = len(keys) * width * self.dtype.itemsize <= budget
        starts = range(0, len(keys), self.block)
        self.coarse = {s: self._coarse(s) for s in starts} if fits else {}

    def search(self, queries, k: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (first query, distances (q, K) float32 squared L2, indices (q, K)) by blocks.

        K = min(k, N); nearest first, of equally near ones the first, where those of one distance
        are no more than k + EXTRA. queries (Q, D) is like keys.
        """
        k = min(k, len(self.keys))
        for start in range(0, len(queries), QUERY_BLOCK):
            block = as_float(queries[start : start + QUERY_BLOCK], self.device)
            yield start, *rescore(self._rows, block, self.candidates(block, k + EXTRA), k)

    def candidates(self, queries: Tensor, k: int) -> Tensor:
        """Return indices (q, min(k, N)) of the best coarse scores, in no order."""
        k = min(k, len(self.keys))
        queries = queries.to(self.device).float() - self.mean
        thresholds = self._thresholds(queries, k)
        if thresholds is None:
            return self._plainly(queries, k)
        found = Survivors(thresholds, k)
        columns = self._query_columns(queries, thresholds)
        for start in range(0, len(self.keys), self.block):
            keys = self.coarse[start] if self.coarse else self._coarse(start)
            rows, at, scores = above(columns @ keys.T)
            scores += found.thresholds[rows]
            if found.add(rows, at + start, scores):
                columns = self._query_columns(queries, found.thresholds)
        indices, whole = found.finish()
        if not whole.all():
            short = (~whole).nonzero().squeeze(1)
            indices[short] = self._plainly(queries[short], k)
        return indices

    def _thresholds(self, queries: Tensor, k: int) -> Tensor | None:
        """Return scores (q,) that k keys or more beat, most likely; None where a sample is no help.

        Of a sample of n keys, k * n / N beat the k-th best score of all, give or take the root. A
        few of them give a first answer, and relative to it the others give a fine one.
        """
        expected = k * len(self.sample) / len(self.keys)
        rank = int(expected + 4 * expected**0.5) + 4
        maxima = len(self.sample) // SAMPLE_GROUP
        if rank > maxima // 2:
            return None
        thresholds = queries.new_zeros(len(queries))
        for members in (2, SAMPLE_GROUP):
            part = self._query_columns(queries, thresholds) @ self.sample[: members * maxima].T
            best = part.view(len(queries), members, maxima).amax(1).float()
            thresholds += kth_largest(best, max(1, rank * members // SAMPLE_GROUP))
        return thresholds

    def _plainly(self, queries: Tensor, k: int) -> Tensor:
        """Return indices (q, k) of the best scores in float32 by a top-k a block."""
        best = torch.empty(len(queries), 0, dtype=torch.long, device=self.device)
        for start in range(0, len(self.keys), self.block):
            keys = self._rows(slice(start, start + self.block)) - self.mean
            block = queries @ keys.T - keys.square().sum(-1) / 2
            places = torch.arange(start, start + len(keys), device=self.device)
            best = torch.cat([best, largest(pack(block, places), min(k, len(keys)))], 1)
            best = largest(best, min(k, best.shape[1]))
        return unpack(best)[1]

    def _rows(self, at) -> Tensor:
        """Return keys (n, D) of a slice or of indices (n,), float32 on the device, a fresh copy."""
        return rows_of(self.keys, at, self.device)

    def _coarse(self, start: int) -> Tensor:
        """Return the coarse columns of the block of keys that begins at `start`."""
        return self._key_columns(self._rows(slice(start, start + self.block)))

    def _key_columns(self, keys: Tensor) -> Tensor:
        """Return [k, -|k|^2 / 2 in pieces, ones] of keys (n, D), centred and rounded."""
        rounded = (keys - self.mean).to(self.dtype)
        half_norms = rounded.float().square().sum(-1) / 2
        ones = rounded.new_ones(len(keys), PIECES)
        return torch.cat([rounded, pieces(-half_norms, self.dtype), ones], 1)

    def _query_columns(self, queries: Tensor, thresholds: Tensor) -> Tensor:
        """Return [q, ones, -threshold in pieces]: by key columns, q.k - |k|^2 / 2 - threshold."""
        rounded = queries.to(self.dtype)
        ones = rounded.new_ones(len(queries), PIECES)
        return torch.cat([rounded, ones, pieces(-thresholds, self.dtype)], 1)


def rescore(rows_of, queries: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
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
    places = torch.arange(indices.shape[1], device=indices.device).expand_as(indices)
    scores, place = unpack(~smallest_first(~pack(-torch.cat(distances), places))[:, :k])
    return -scores, indices.gather(1, place)


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


def pieces(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (n, PIECES) numbers of dtype that sum to float32 values (n,)."""
    parts = []
    for _ in range(PIECES):
        parts.append(values.to(dtype))
        values = values - parts[-1].float()
    return torch.stack(parts, 1)


@cache
def fast_dtype(kind: str) -> torch.dtype:
    """Return the dtype whose products are fastest on a kind of device; on a CPU it is measured."""
    if kind != "cpu":
        return torch.bfloat16
    seconds = {}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.ones(512, 512, dtype=dtype)
        for _ in range(3):  # the first one prepares
            start = time.perf_counter()
            a @ a.T
            seconds[dtype] = min(seconds.get(dtype, torch.inf), time.perf_counter() - start)
    return min(seconds, key=seconds.get)


class BulkRetriever:
    """The bulk search as a retriever: exact, and fast for many queries at once."""

    holds_keys = True

    def __init__(self, keys, device: torch.device | str = "cpu") -> None:
        """Prepare keys (N, D)."""
        self._search = BulkSearch(keys, device)
        self.bytes = len(keys) * keys.shape[1] * 2

    def search(self, queries: Tensor, k: int) -> Neighbours:
        """Return the k nearest keys of queries (Q, D)."""
        if not len(queries):
            return Neighbours(torch.zeros(0, k, dtype=torch.long), torch.zeros(0, k))
        found = [(d, i) for _, d, i in self._search.search(queries, k)]
        return Neighbours(torch.cat([i for _, i in found]), torch.cat([d for d, _ in found]))

"""Exact search of many queries at once, on any device; training targets come from it.

Scores are coarse, in the dtype with the fastest products. A query's threshold comes from a sample
of the keys and rises when it has enough candidates. Extra columns subtract it in the product, so
scores near the threshold are small numbers, which bfloat16 rounds little.
"""

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from mlpmem.retrieval.exact_search import ExactSearch
from mlpmem.retrieval.top_k import Block, best_above, kth_largest

KEY_BLOCK = {"cpu": 2048, "cuda": 65536}
SAMPLE_GROUP = 16  # sampled keys that are represented by their best score
PIECES = 3  # bfloat16 numbers that sum to a float32
BUDGET = 4 * 2**30  # bytes of coarse keys to hold


class BulkSearch(ExactSearch):
    """Exact search with coarse keys prepared once: centred and rounded, in blocks."""

    def __init__(self, keys, device: torch.device | str = "cpu", budget: int = BUDGET) -> None:
        """Prepare keys (N, D); see ExactSearch.

        Coarse keys of more than `budget` bytes in all are computed block by block in every pass.
        """
        super().__init__(keys, device, budget)
        self.block = KEY_BLOCK.get(self.device.type, KEY_BLOCK["cuda"])
        width = keys.shape[1] + 2 * PIECES
        fits = len(keys) * width * self.dtype.itemsize <= budget
        starts = range(0, len(keys), self.block)
        self.coarse: dict[int, Tensor] = {}  # by first key
        self.coarse.update((s, self._coarse(s)) for s in starts if fits)

    def _prepare(self, sample: Tensor) -> None:
        """Store the sample's coarse columns, which give the thresholds."""
        self.dtype = fast_dtype(self.device.type)
        self.sample = self._key_columns(sample)

    def _candidates(self, queries: Tensor, k: int) -> Tensor:
        """Return candidates of centred queries by coarse scores; exact ones if too few."""
        thresholds = self._thresholds(queries, k)
        if thresholds is None:
            return super()._candidates(queries, k)

        def beyond(thresholds: Tensor) -> Callable[[int], Block]:
            columns = self._query_columns(queries, thresholds)
            return lambda start: (columns @ self._coarse(start).T, None)

        starts = range(0, len(self.keys), self.block)
        indices, enough = best_above(beyond, starts, thresholds, k)
        if not enough.all():
            short = (~enough).nonzero().squeeze(1)
            indices[short] = super()._candidates(queries[short], k)
        return indices

    def _thresholds(self, queries: Tensor, k: int) -> Tensor | None:
        """Return scores (q,) that at least k keys probably beat; None if the sample is too small.

        Of a sample of n keys, about k * n / N beat the k-th best score of all keys, with a standard
        deviation of its root. A part of the sample gives a first threshold, and the whole sample,
        rounded relative to that, a finer one.
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

    def _coarse(self, start: int) -> Tensor:
        """Return the coarse columns of the block of keys from `start`."""
        if start in self.coarse:
            return self.coarse[start]
        return self._key_columns(self._rows(slice(start, start + self.block)))

    def _key_columns(self, keys: Tensor) -> Tensor:
        """Return [k, pieces of -|k|^2 / 2, ones] of keys (n, D), centred and rounded."""
        rounded = (keys - self.mean).to(self.dtype)
        half_norms = rounded.float().square().sum(-1) / 2
        ones = rounded.new_ones(len(keys), PIECES)
        return torch.cat([rounded, pieces(-half_norms, self.dtype), ones], 1)

    def _query_columns(self, queries: Tensor, thresholds: Tensor) -> Tensor:
        """Return [q, ones, pieces of -threshold]; by key columns: q.k - |k|^2 / 2 - threshold."""
        rounded = queries.to(self.dtype)
        ones = rounded.new_ones(len(queries), PIECES)
        return torch.cat([rounded, ones, pieces(-thresholds, self.dtype)], 1)


def pieces(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (n, PIECES) numbers of dtype that sum to float32 values (n,)."""
    parts = []
    for _ in range(PIECES):
        parts.append(values.to(dtype))
        values = values - parts[-1].float()
    return torch.stack(parts, 1)


@cache
def fast_dtype(kind: str) -> torch.dtype:
    """Return the dtype with the fastest products on a kind of device, measured on a CPU."""
    if kind != "cpu":
        return torch.bfloat16
    seconds = {}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.ones(512, 512, dtype=dtype)
        for _ in range(3):  # the first one warms up
            start = time.perf_counter()
            a @ a.T
            seconds[dtype] = min(seconds.get(dtype, torch.inf), time.perf_counter() - start)
    return min(seconds, key=lambda dtype: seconds[dtype])

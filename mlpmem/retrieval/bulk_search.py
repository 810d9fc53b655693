"""Exact search of very many queries at once, on any device: where the targets come from.

Scores are coarse, in the dtype whose products are fastest. The threshold comes from a sample of the
keys and rises when a query has found enough. It is part of the product, as columns beside the
hidden state's, so that what comes out is "how much better than the threshold": small where it
matters, and there bfloat16's rounding of the result is small too.
"""

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from mlpmem.retrieval.exact_search import ExactSearch
from mlpmem.retrieval.top_k import Block, best_above, kth_largest

KEY_BLOCK = {"cpu": 2048, "cuda": 65536}
SAMPLE_GROUP = 16  # sampled keys whose best score stands for all
PIECES = 3  # bfloat16 numbers that together hold a float32
BUDGET = 4 * 2**30  # bytes of coarse keys that are kept


class BulkSearch(ExactSearch):
    """Exact search with keys prepared once: centred, rounded and halved, in blocks."""

    def __init__(self, keys, device: torch.device | str = "cpu", budget: int = BUDGET) -> None:
        """Prepare keys (N, D), see ExactSearch.

        Coarse copies larger than `budget` bytes are made one block at a time in every pass.
        """
        super().__init__(keys, device, budget)
        self.block = KEY_BLOCK.get(self.device.type, KEY_BLOCK["cuda"])
        width = keys.shape[1] + 2 * PIECES
        fits = len(keys) * width * self.dtype.itemsize <= budget
        starts = range(0, len(keys), self.block)
        self.coarse: dict[int, Tensor] = {}  # by their first key
        self.coarse.update((s, self._coarse(s)) for s in starts if fits)

    def _prepare(self, sample: Tensor) -> None:
        """Keep the sample's coarse columns, which thresholds are read from."""
        self.dtype = fast_dtype(self.device.type)
        self.sample = self._key_columns(sample)

    def _candidates(self, queries: Tensor, k: int) -> Tensor:
        """Return candidates of centred queries by coarse scores; by exact ones where need be."""
        thresholds = self._thresholds(queries, k)
        if thresholds is None:
            return super()._candidates(queries, k)

        def beyond(thresholds: Tensor) -> Callable[[int], Block]:
            columns = self._query_columns(queries, thresholds)
            return lambda start: (columns @ self._coarse(start).T, None)

        starts = range(0, len(self.keys), self.block)
        indices, whole = best_above(beyond, starts, thresholds, k)
        if not whole.all():
            short = (~whole).nonzero().squeeze(1)
            indices[short] = super()._candidates(queries[short], k)
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

    def _coarse(self, start: int) -> Tensor:
        """Return the coarse columns of the block of keys that begins at `start`."""
        if start in self.coarse:
            return self.coarse[start]
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
    return min(seconds, key=lambda dtype: seconds[dtype])

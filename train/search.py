"""Exact search of very many queries at once, on any device: where the targets come from.

Blocked matrix products in bfloat16; of each block only scores above a query's running k-th best
are kept (a compaction instead of a top-k a block). A few more than k candidates survive and are
scored again in float32, so that neither order nor distances carry bfloat16's error. Only where more
keys than those nearly tie at the k-th place, others that are as near may stand for them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

EXTRA = 32  # candidates beyond k for the second scoring
QUERY_BLOCK = 2048
KEY_BLOCK = 8192


class BulkSearch:
    """Keys prepared once: centred (distances do not change, rounding gets smaller) and halved."""

    def __init__(self, keys: Tensor, device: torch.device | str = "cpu") -> None:
        """Prepare keys (N, D) of any float dtype."""
        self.device = torch.device(device)
        self.keys = keys
        self.mean = keys[:: max(1, len(keys) // 65536)].float().mean(0).to(self.device)
        self.coarse = self._coarse(keys)
        norms = [b.float().square().sum(-1) for b in self.coarse.split(KEY_BLOCK)]
        self.half_norms = torch.cat(norms) / 2

    def search(self, queries: Tensor, k: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (first query, distances (q, K) float32 squared L2, indices (q, K)) by blocks.

        K = min(k, N); nearest first.
        """
        for start in range(0, len(queries), QUERY_BLOCK):
            block = queries[start : start + QUERY_BLOCK]
            indices = self._candidates(self._coarse(block), min(k + EXTRA, len(self.keys)))
            yield start, *self._rescore(block, indices, min(k, len(self.keys)))

    def _coarse(self, keys: Tensor) -> Tensor:
        """Return centred bfloat16 copies, made a block at a time."""
        blocks = keys.split(KEY_BLOCK)
        return torch.cat([(b.to(self.device).float() - self.mean).bfloat16() for b in blocks])

    def _candidates(self, queries: Tensor, k: int) -> Tensor:
        """Return indices (q, k) of the best coarse scores q.k - |k|^2 / 2, in no order."""
        first = max(KEY_BLOCK, k)
        scores, indices = self._scores(queries, slice(0, first)).topk(k, dim=-1)
        threshold = scores[:, -1]
        for start in range(first, len(self.coarse), KEY_BLOCK):
            block = self._scores(queries, slice(start, start + KEY_BLOCK))
            rows, columns = (block > threshold[:, None]).nonzero(as_tuple=True)
            if not len(rows):
                continue
            new_scores, new_indices = _pad(rows, block[rows, columns], columns + start, len(scores))
            scores = torch.cat([scores, new_scores], 1)
            scores, kept = scores.topk(k, dim=-1)
            indices = torch.cat([indices, new_indices], 1).gather(1, kept)
            threshold = scores[:, -1]
        return indices

    def _scores(self, queries: Tensor, at: slice) -> Tensor:
        """Return coarse scores (q, n) of a block of keys."""
        return (queries @ self.coarse[at].T).float() - self.half_norms[at]

    def _rescore(self, queries: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k nearest of the candidates by float32 distances."""
        distances = []
        for some, at in zip(queries.split(256), indices.split(256), strict=True):
            keys = self.keys[at.cpu()].to(self.device).float()
            distances.append((keys - some.to(self.device).float()[:, None]).square().sum(-1))
        nearest, kept = torch.cat(distances).topk(k, dim=-1, largest=False)
        return nearest, indices.gather(1, kept)


def _pad(rows: Tensor, scores: Tensor, columns: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return ragged (row, score, column) triples, sorted by row, as padded (count, m) arrays."""
    sizes = torch.bincount(rows, minlength=count)
    within = torch.arange(len(rows), device=rows.device) - (sizes.cumsum(0) - sizes)[rows]
    shape = count, int(sizes.max())
    padded = torch.full(shape, -torch.inf, device=rows.device)
    where = torch.zeros(shape, dtype=torch.long, device=rows.device)
    padded[rows, within] = scores
    where[rows, within] = columns
    return padded, where

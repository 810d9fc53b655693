"""Top-k over blocks of scores by thresholds: a block adds only scores above its row's threshold.

This is a compaction instead of a top-k per block. Sorting and selecting use numpy on a CPU, where
it is vectorised, and torch elsewhere.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

GROUP = 8  # scores that are first tested by their maximum
INTEGER = {2: torch.int16, 4: torch.int32}


def above(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (rows, columns, scores float32) of the positive entries of scores (Q, n), by rows.

    The bits of a positive float are a positive integer, which is faster to compare. Maxima over
    groups of GROUP distant columns are tested first.
    """
    rows, columns = scores.shape
    size = GROUP if columns % GROUP == 0 else 1
    stride = columns // size
    bits = scores.view(INTEGER[scores.itemsize])
    groups = nonzero(bits.view(rows, size, stride).amax(1) > 0)
    row = groups.div(stride, rounding_mode="floor")
    first = groups + row * (columns - stride)
    members = (first[:, None] + torch.arange(size, device=row.device) * stride).flatten()
    values = bits.flatten().index_select(0, members)
    hit = nonzero(values > 0)
    row = row.index_select(0, hit.div(size, rounding_mode="floor"))
    at = members.index_select(0, hit) - row * columns
    return row, at, values.index_select(0, hit).view(scores.dtype).float()


class Survivors:
    """The best scores of every row so far, unordered; thresholds rise to hold few."""

    def __init__(self, thresholds: Tensor, k: int) -> None:
        """Start at thresholds (Q,) that at least k scores of a row will probably beat."""
        self.thresholds, self.k, self.most = thresholds, k, 4 * k
        self.fill = torch.zeros_like(thresholds, dtype=torch.long)  # (Q,) survivors per row
        self.packed = self._padding(self.most)  # (Q, width) scores and indices

    def add(self, rows: Tensor, indices: Tensor, scores: Tensor) -> bool:
        """Add entries, sorted by row and above its threshold; return whether thresholds rose."""
        counts = torch.bincount(rows, minlength=len(self.fill))
        before = self.fill - (counts.cumsum(0) - counts)
        fill = self.fill + counts
        needed = int(fill.max())
        if wider := max(0, needed - self.packed.shape[1]):
            self.packed = torch.cat([self.packed, self._padding(wider)], 1)
        at = before[rows] + torch.arange(len(rows), device=rows.device)
        at += rows * self.packed.shape[1]
        self.packed.view(-1)[at] = pack(scores, indices)
        self.fill = fill
        if needed > self.most:
            self._cut()
        return needed > self.most

    def finish(self) -> tuple[Tensor, Tensor]:
        """Return indices (Q, k) of the best, unordered, and which rows (Q,) have k."""
        width = max(self.k, int(self.fill.max()))
        return unpack(largest(self.packed[:, :width], self.k))[1], self.fill >= self.k

    def _cut(self) -> None:
        """Reduce every row to its k best, and raise the thresholds of rows that have k.

        Shorter rows keep them in front, as `add` writes behind `fill`.
        """
        best = largest(self.packed, self.k)
        short = (self.fill < self.k).nonzero().squeeze(1)
        if len(short):
            best[short] = ~smallest_first(~best[short])
        self.packed = torch.cat([best, self._padding(self.packed.shape[1] - self.k)], 1)
        self.fill = self.fill.clamp_max(self.k)
        lowest = unpack(best.amin(1))[0]
        self.thresholds = torch.where(lowest.isinf(), self.thresholds, lowest)

    def _padding(self, width: int) -> Tensor:
        """Return (Q, width) packed scores of -inf."""
        scores = self.thresholds.new_full((len(self.thresholds), width), -torch.inf)
        return pack(scores, torch.zeros_like(scores, dtype=torch.long))


Block = tuple[Tensor, Tensor | None]


def best_above(
    beyond: Callable[[Tensor], Callable[[int], Block]],
    starts: Iterable[int],
    thresholds: Tensor,
    k: int,
) -> tuple[Tensor, Tensor]:
    """Return indices (Q, k) of the best scores, unordered, and which rows (Q,) have k.

    Scores come in blocks of columns that begin at `starts`. beyond(thresholds (Q,)) returns a
    function of a block's start, and is called again when thresholds rise. That function returns a
    Block: scores minus thresholds (Q, n), and the scores, or None if their sum is exact enough.
    """
    survivors = Survivors(thresholds, k)
    block = beyond(thresholds)
    for start in starts:
        excess, scores = block(start)
        rows, at, more = above(excess)
        best = survivors.thresholds[rows] + more if scores is None else scores[rows, at]
        if survivors.add(rows, at + start, best):
            block = beyond(survivors.thresholds)
    return survivors.finish()


def nearest_first(distances: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the first k (distances, indices) (Q, k) by distance, then index.

    distances (Q, n) are float32, 0 or more; every row of indices (Q, n) ascends.
    """
    places = torch.arange(indices.shape[1], device=indices.device).expand_as(indices)
    scores, place = unpack(~smallest_first(~pack(-distances, places))[:, :k])
    return -scores, indices.gather(1, place)


LAST = 2**32 - 1


def pack(scores: Tensor, indices: Tensor) -> Tensor:
    """Return integers (Q, n) of float32 scores and indices below 2**32; the best is largest.

    Of equal scores the first index is best. Many keys are equal: all with one prefix. Their choice
    must be deterministic, and the first entry is usually the most frequent. One packed integer is
    also sorted faster than a score with a separate index.
    """
    return (_flipped(scores.view(torch.int32)).long() << 32) | (LAST - indices)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores float32 and indices int64 of packed integers, exactly."""
    return _flipped((packed >> 32).int()).view(torch.float32), LAST - (packed & LAST)


def _flipped(bits: Tensor) -> Tensor:
    """Return a float's bits as an integer of the same order, or the reverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def nonzero(mask: Tensor) -> Tensor:
    """Return the flat indices (n,) at which a mask of any shape is true, ascending."""
    if mask.device.type != "cpu":
        return mask.flatten().nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def largest(packed: Tensor, k: int) -> Tensor:
    """Return the k largest of every row of numbers (Q, n), (Q, k), unordered."""
    if packed.device.type != "cpu":
        return packed.topk(k, sorted=False).values
    if k == packed.shape[1]:
        return packed
    rest = packed.shape[1] - k
    return torch.from_numpy(np.partition(packed.numpy(), rest, axis=1)[:, rest:])


def kth_largest(scores: Tensor, k: int) -> Tensor:
    """Return the k-th largest of every row of scores (Q, n), (Q,)."""
    if scores.device.type != "cpu":
        return scores.topk(k).values[:, -1]
    at = scores.shape[1] - k
    return torch.from_numpy(np.partition(scores.numpy(), at, axis=1)[:, at].copy())


def smallest_first(values: Tensor) -> Tensor:
    """Return every row of integers (Q, n) in ascending order."""
    if values.device.type != "cpu":
        return values.sort(1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=1))

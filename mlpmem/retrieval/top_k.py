"""Threshold compaction: what of a block of scores beats its row's threshold, and what was kept.

Only scores above a row's threshold are kept, a compaction instead of a top-k for every block.
Selecting among numbers on any device: numpy's sorts on a CPU (vectorised), torch's elsewhere.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

GROUP = 8  # scores whose maximum is looked at first
INTEGER = {2: torch.int16, 4: torch.int32}


def above(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (rows, columns, scores float32) of the positive entries of scores (Q, n), by rows.

    A positive float's bits are a positive integer, and integers are compared faster; maxima over
    groups of columns far apart leave one in GROUP numbers to search through.
    """
    rows, columns = scores.shape
    size = GROUP if columns % GROUP == 0 else 1
    apart = columns // size
    bits = scores.view(INTEGER[scores.itemsize])
    groups = nonzero(bits.view(rows, size, apart).amax(1) > 0)
    row = groups.div(apart, rounding_mode="floor")
    first = groups + row * (columns - apart)
    members = (first[:, None] + torch.arange(size, device=row.device) * apart).flatten()
    found = bits.flatten().index_select(0, members)
    hit = nonzero(found > 0)
    row = row.index_select(0, hit.div(size, rounding_mode="floor"))
    at = members.index_select(0, hit) - row * columns
    return row, at, found.index_select(0, hit).view(scores.dtype).float()


class Survivors:
    """The best of every row so far, unordered; thresholds rise so that few need to be kept."""

    def __init__(self, thresholds: Tensor, k: int) -> None:
        """Begin with thresholds (Q,) that at least k scores of a row will probably beat."""
        self.thresholds, self.k, self.most = thresholds, k, 4 * k
        self.fill = torch.zeros_like(thresholds, dtype=torch.long)  # (Q,) how many a row has
        self.kept = self._none(self.most)  # (Q, width) scores and indices, packed

    def add(self, rows: Tensor, indices: Tensor, scores: Tensor) -> bool:
        """Keep entries sorted by row, all beyond their row's threshold; say if thresholds rose."""
        counts = torch.bincount(rows, minlength=len(self.fill))
        before = self.fill - (counts.cumsum(0) - counts)
        fill = self.fill + counts
        needed = int(fill.max())
        if wider := max(0, needed - self.kept.shape[1]):
            self.kept = torch.cat([self.kept, self._none(wider)], 1)
        at = before[rows] + torch.arange(len(rows), device=rows.device)
        at += rows * self.kept.shape[1]
        self.kept.view(-1)[at] = pack(scores, indices)
        self.fill = fill
        if needed > self.most:
            self._cut()
        return needed > self.most

    def finish(self) -> tuple[Tensor, Tensor]:
        """Return indices (Q, k) of the best, in no order, and which rows (Q,) have as many."""
        width = max(self.k, int(self.fill.max()))
        return unpack(largest(self.kept[:, :width], self.k))[1], self.fill >= self.k

    def _cut(self) -> None:
        """Keep the k best of every row, and raise the thresholds of those that have k.

        Rows that have fewer keep them in front: what comes next is written behind `fill`.
        """
        best = largest(self.kept, self.k)
        short = (self.fill < self.k).nonzero().squeeze(1)
        if len(short):
            best[short] = ~smallest_first(~best[short])
        self.kept = torch.cat([best, self._none(self.kept.shape[1] - self.k)], 1)
        self.fill = self.fill.clamp_max(self.k)
        lowest = unpack(best.amin(1))[0]
        self.thresholds = torch.where(lowest.isinf(), self.thresholds, lowest)

    def _none(self, width: int) -> Tensor:
        """Return (Q, width) of what is worse than anything."""
        scores = self.thresholds.new_full((len(self.thresholds), width), -torch.inf)
        return pack(scores, torch.zeros_like(scores, dtype=torch.long))


Block = tuple[Tensor, Tensor | None]


def best_above(
    beyond: Callable[[Tensor], Callable[[int], Block]],
    starts: Iterable[int],
    thresholds: Tensor,
    k: int,
) -> tuple[Tensor, Tensor]:
    """Return indices (Q, k) of the best scores, in no order, and which rows (Q,) have as many.

    Scores come in blocks of columns that begin at `starts`: beyond(thresholds (Q,)) gives a
    function that returns a Block: how far its scores lie beyond them, (Q, n), and the scores, or
    None where the sum is good enough. It is asked for another where the thresholds have risen.
    """
    found = Survivors(thresholds, k)
    block = beyond(thresholds)
    for start in starts:
        excess, scores = block(start)
        rows, at, more = above(excess)
        kept = found.thresholds[rows] + more if scores is None else scores[rows, at]
        if found.add(rows, at + start, kept):
            block = beyond(found.thresholds)
    return found.finish()


def nearest_first(distances: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the first k (distances, indices) (Q, k) by distance, then index.

    distances (Q, n) are float32, 0 or more; every row of indices (Q, n) ascends.
    """
    places = torch.arange(indices.shape[1], device=indices.device).expand_as(indices)
    scores, place = unpack(~smallest_first(~pack(-distances, places))[:, :k])
    return -scores, indices.gather(1, place)


LAST = 2**32 - 1


def pack(scores: Tensor, indices: Tensor) -> Tensor:
    """Return integers (Q, n) that hold float32 scores and indices below 2**32; the best is largest.

    Of equal scores the first index is best. Equal keys are many: all that comes after one prefix.
    Which of them are among the k nearest must not be luck, and what was seen first is usually what
    was seen most. Numbers that carry their index are also sorted faster than an index beside them.
    """
    return (_flipped(scores.view(torch.int32)).long() << 32) | (LAST - indices)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores float32 and indices int64 of packed integers, exactly."""
    return _flipped((packed >> 32).int()).view(torch.float32), LAST - (packed & LAST)


def _flipped(bits: Tensor) -> Tensor:
    """Return a float's bits as an integer of the same order, or back; negative ones differ."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def nonzero(mask: Tensor) -> Tensor:
    """Return where a mask of any shape, laid out flat, is true: (n,), ascending."""
    if mask.device.type != "cpu":
        return mask.flatten().nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def largest(packed: Tensor, k: int) -> Tensor:
    """Return the k largest of every row of numbers (Q, n), (Q, k), in no order."""
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
    """Return every row of integers (Q, n) from the smallest on."""
    if values.device.type != "cpu":
        return values.sort(1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=1))

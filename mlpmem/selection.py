"""Selecting among numbers on any device: numpy's sorts on a CPU (vectorised), torch's elsewhere."""

import numpy as np
import torch
from torch import Tensor

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

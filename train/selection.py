"""Selecting among numbers on any device: numpy's sorts on a CPU (vectorised), torch's elsewhere."""

import numpy as np
import torch
from torch import Tensor

LAST = 2**32 - 1


def ranks(values: Tensor, indices: Tensor) -> Tensor:
    """Return integers (Q, n) in the order of float32 values; of equal ones the first index is best.

    Equal keys are many: all that comes after one prefix. Which of them are among the k nearest must
    not be luck, and what was seen first is usually what was seen most.
    """
    bits = values.view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats' bits sort the other way
    return (ordered.long() << 32) | (LAST - indices)


def nonzero(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rows, columns) of the true entries of a mask (Q, n), by rows."""
    if mask.device.type != "cpu":
        return mask.nonzero(as_tuple=True)
    at = torch.from_numpy(np.flatnonzero(mask.numpy()))
    rows = at.div(mask.shape[1], rounding_mode="floor")
    return rows, at - rows * mask.shape[1]


def largest(scores: Tensor, k: int) -> Tensor:
    """Return where the k largest of every row of numbers (Q, n) are, (Q, k), in no order."""
    if scores.device.type != "cpu":
        return scores.topk(k, sorted=False).indices
    if k == scores.shape[1]:
        return torch.arange(k).expand(len(scores), -1)
    rest = scores.shape[1] - k
    return torch.from_numpy(np.argpartition(scores.numpy(), rest, axis=1)[:, rest:])


def kth_largest(scores: Tensor, k: int) -> Tensor:
    """Return the k-th largest of every row of scores (Q, n), (Q,)."""
    if scores.device.type != "cpu":
        return scores.topk(k).values[:, -1]
    at = scores.shape[1] - k
    return torch.from_numpy(np.partition(scores.numpy(), at, axis=1)[:, at].copy())


def smallest_first(values: Tensor) -> Tensor:
    """Return the order of every row of values (Q, n) from the smallest on, (Q, n)."""
    if values.device.type != "cpu":
        return values.argsort(1)
    return torch.from_numpy(np.argsort(values.numpy(), axis=1))

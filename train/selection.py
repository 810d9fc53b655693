"""Selecting among numbers on any device: numpy's sorts on a CPU (vectorised), torch's elsewhere."""

import numpy as np
import torch
from torch import Tensor


def nonzero(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rows, columns) of the true entries of a mask (Q, n), by rows."""
    if mask.device.type != "cpu":
        return mask.nonzero(as_tuple=True)
    at = torch.from_numpy(np.flatnonzero(mask.numpy()))
    rows = at.div(mask.shape[1], rounding_mode="floor")
    return rows, at - rows * mask.shape[1]


def largest(scores: Tensor, k: int) -> Tensor:
    """Return where the k largest of every row of scores (Q, n) are, (Q, k), in no order."""
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

"""The maths of the three sources and their mix, as pure functions on tensors.

Values are float32 and in nats unless stated. Distances are squared L2. A value of -1 means "no
neighbour" and gets weight 0. Nothing in this file depends on a model.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LAST_TOKEN = 2**32 - 1


class SparseProbs(NamedTuple):
    """Distributions over V tokens by their support; padding is token 0 with probability 0."""

    token_ids: Tensor  # (Q, S) int64, most probable first
    probs: Tensor  # (Q, S) float32, rows sum to 1, or to 0 without neighbours


def log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log-probs in float32 of logits (..., V) divided by temperature."""
    logits = logits.float()
    return torch.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)


def interpolate(lm_log_probs: Tensor, other_log_probs: Tensor, lmbda: float | Tensor) -> Tensor:
    """Return log((1 - lmbda) * p_lm + lmbda * p_other), (..., V) float32.

    Exact at the ends: lmbda 0 gives the first argument and 1 the second, bit for bit. -inf in
    either never gives nan. A tensor lmbda is broadcast, (...) or (..., 1).
    """
    lm, other = lm_log_probs.float(), other_log_probs.float()
    weight = torch.as_tensor(lmbda, dtype=torch.float32, device=lm.device)
    if weight.dim() and weight.dim() < lm.dim():
        weight = weight.unsqueeze(-1)
    return _mix(lm, other, weight)


def mix_nll(
    lm_nll: Tensor | np.ndarray, other_nll: Tensor | np.ndarray, lmbda: float | Tensor | np.ndarray
) -> Tensor:
    """Return -log((1 - lmbda) * p_lm + lmbda * p_other), (...) nats in float64, of two nlls (...).

    Exact at the ends like `interpolate`; lmbda is a number or broadcast, (...).
    """
    lm, other = (-torch.as_tensor(nll).double() for nll in (lm_nll, other_nll))
    return -_mix(lm, other, torch.as_tensor(lmbda, dtype=torch.float64, device=lm.device))


def _mix(lm: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """Return the mix's log-probs in the inputs' dtype, exact at the ends."""
    mixed = weigh(lm, other, torch.log1p(-weight), torch.log(weight))
    return torch.where(weight == 0, lm, torch.where(weight == 1, other, mixed))


def weigh(lm: Tensor, other: Tensor, log_rest: Tensor, log_weight: Tensor) -> Tensor:
    """Return log(rest * p_lm + weight * p_other) of log-probs; differentiable in every argument."""
    return torch.logaddexp(log_rest + lm, log_weight + other)


def knn_weights(
    distances: Tensor, values: Tensor, counts: Tensor | None, temperature: float
) -> Tensor:
    """Return each neighbour's share of the kNN mass, (Q, K); all 0 in a row without neighbours.

    The share is count * exp(-distance / temperature), normalised. A count stands for that many
    entries with equal keys, so the result equals the sum over all of them.
    """
    scores = -distances.float() / temperature
    if counts is not None:
        scores = scores + torch.log(counts.float())
    scores = scores.masked_fill(values < 0, -torch.inf)
    top = scores.amax(dim=-1, keepdim=True)
    weights = torch.exp(scores - torch.where(top.isinf(), torch.zeros_like(top), top))
    return weights / weights.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def knn_sparse(
    distances: Tensor, values: Tensor, counts: Tensor | None, temperature: float
) -> SparseProbs:
    """Return the kNN distributions of (Q, K) neighbours, sparse, with S <= K columns.

    Neighbours of equal value are summed by one sort and one segment sum, without a (Q, V) array.
    """
    weights = knn_weights(distances, values, counts, temperature)
    rows, count = weights.shape
    if not weights.numel():
        return SparseProbs(weights.new_zeros(rows, 1).long(), weights.new_zeros(rows, 1))
    bits = (count - 1).bit_length()
    place = torch.arange(count, device=weights.device)
    packed = _sorted(values.long().clamp_min(0) << bits | place)
    values, weights = packed >> bits, weights.gather(1, packed & (2**bits - 1))
    starts = torch.ones_like(values, dtype=torch.bool)
    starts[:, 1:] = values[:, 1:] != values[:, :-1]
    segment = starts.flatten().cumsum(0) - 1
    sums = weights.new_zeros(int(segment[-1]) + 1).index_add_(0, segment, weights.flatten())
    return _most_probable_first(values[starts], sums, starts.sum(1))


def _most_probable_first(token_ids: Tensor, probs: Tensor, sizes: Tensor) -> SparseProbs:
    """Return ragged rows of sizes (Q,), padded, by descending prob, then by token.

    One integer holds both, the prob's bits above the token: bits of positive floats sort like
    integers.
    """
    width = int(sizes.max())
    row = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    first = sizes.cumsum(0) - sizes
    at = torch.arange(len(row), device=sizes.device) + (row * width - first[row])
    packed = token_ids.new_zeros(len(sizes) * width)
    packed[at] = probs.view(torch.int32).long() << 32 | (LAST_TOKEN - token_ids)
    packed = _sorted(packed.view(-1, width)).flip(1)
    probs = (packed >> 32).int().view(torch.float32)
    support = max(1, int((probs > 0).sum(1).max()))
    token_ids = (LAST_TOKEN - (packed & LAST_TOKEN)).masked_fill_(probs == 0, 0)
    return SparseProbs(token_ids[:, :support].contiguous(), probs[:, :support].contiguous())


def _sorted(numbers: Tensor) -> Tensor:
    """Return integers (Q, n) with every row sorted; on a CPU by numpy, whose sort is vectorised."""
    if numbers.device.type != "cpu":
        return numbers.sort(1).values
    return torch.from_numpy(np.sort(numbers.numpy(), axis=1))


def knn_log_probs(
    distances: Tensor,
    values: Tensor,
    counts: Tensor | None,
    temperature: float,
    vocab_size: int,
) -> Tensor:
    """Return kNN log-probs (Q, V) of (Q, K) neighbours: -inf for tokens of no neighbour.

    A row without neighbours is -inf everywhere; mix it with lmbda 0.
    """
    weights = knn_weights(distances, values, counts, temperature)
    at = values.long().clamp_min(0)
    probs = torch.zeros(len(weights), vocab_size, device=weights.device)
    sums = probs.scatter_add_(1, at, weights).gather(1, at)
    return probs.fill_(-torch.inf).scatter_(1, at, sums.log())  # avoids the log of V zeros


def js_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence (...), 0 .. log 2 nats, of log-probs (..., V)."""
    middle = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    halves = [
        torch.where(x.isinf(), 0.0, x.exp() * (x - middle)).sum(dim=-1) for x in (log_p, log_q)
    ]
    return ((halves[0] + halves[1]) / 2).clamp_min(0.0)


def filter_top_k_top_p(log_probs: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Return log_probs (..., V) with -inf for tokens outside top_k, then top_p; not renormalised.

    top_k 0 and top_p 1 keep all tokens. Top-p keeps the fewest tokens whose renormalised mass
    reaches top_p, and always the most probable token.
    """
    if 0 < top_k < log_probs.shape[-1]:
        top = log_probs.topk(top_k, dim=-1)
        log_probs = torch.full_like(log_probs, -torch.inf).scatter(-1, top.indices, top.values)
    if top_p < 1.0:
        ordered, order = log_probs.sort(dim=-1, descending=True, stable=True)
        probs = torch.softmax(ordered, dim=-1)
        before = probs.cumsum(dim=-1) - probs
        ordered = ordered.masked_fill((before >= top_p) & (before > 0), -torch.inf)
        log_probs = torch.empty_like(log_probs).scatter(-1, order, ordered)
    return log_probs


def repetition_penalised(
    log_probs: Tensor, seen: Sequence[Sequence[int]], penalty: float
) -> Tensor:
    """Return log_probs (B, V) with those of seen token ids (B lists) times penalty.

    This is the penalty of Keskar et al. 2019 (CTRL) on log-probs, which are never above 0. The
    result is not renormalised.
    """
    penalised = log_probs.clone()
    for row, ids in enumerate(seen):
        penalised[row, torch.tensor(sorted(set(ids)), device=log_probs.device)] *= penalty
    return penalised


def sample(
    log_probs: Tensor,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    uniform: Tensor | float = 0.0,
    *,
    min_p: float = 0.0,
) -> Tensor:
    """Return one token id per row of log_probs (B, V), (B,) int64.

    Temperature 0 takes the most probable token. Otherwise `uniform` in [0, 1), one number or (B,),
    picks the token by the inverse distribution function: with one number for all rows, systems are
    compared under the same random numbers.
    """
    if temperature == 0.0:
        return log_probs.argmax(dim=-1)
    scores = filter_top_k_top_p(log_probs.float() / temperature, top_k, top_p)
    if min_p > 0:  # Nguyen et al. 2024: a share of the most probable token's mass
        least = scores.amax(-1, keepdim=True) + math.log(min_p)
        scores = scores.masked_fill(scores < least, -torch.inf)
    cumulative = torch.softmax(scores.double(), dim=-1).cumsum(dim=-1)
    at = torch.as_tensor(uniform, dtype=torch.float64, device=scores.device) * cumulative[:, -1]
    ids = torch.searchsorted(cumulative, at.unsqueeze(-1), right=True).squeeze(-1)
    return ids.clamp_max(log_probs.shape[-1] - 1)

"""Head, cross-entropy and sparse KL in one chunked pass; (R, V) logits never exist at once.

loss = alpha * KL(knn || memory) + (1 - alpha) * CE, eq. 6 of arXiv 2508.01832. With a sparse
target p over S tokens, KL(p || q) = sum p log p - sum p * logit + logsumexp(logits), so only the
support is gathered. Gradients are computed chunk by chunk in the forward pass, because they need
only the chunk's logits: softmax(logits) - target.

All values are *sums* over rows. Sums of micro-batches and of processes add up to the sums of the
whole step, whatever their sizes; MasterOptimizer divides by the rows once.
"""

import torch
from torch import Tensor

# float32 logits of a chunk: about a CPU's cache, or large enough for few kernels on a GPU
CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 2**30}

TINY = 1e-20


def chunk_rows(vocab: int, device: str) -> int:
    """Return the rows whose logits are computed at once on a type of device."""
    return max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * vocab))


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, head, values, token_ids, probs, alpha, head_grad):
        d_features = torch.empty_like(features)
        d_head = None
        if head_grad is None and ctx.needs_input_grad[1]:
            head_grad = d_head = torch.zeros(head.shape, dtype=torch.float32, device=head.device)
        sums = features.new_zeros(3, dtype=torch.float32)  # loss, kl, ce
        by_row = isinstance(alpha, Tensor)
        size = chunk_rows(len(head), features.device.type)
        for start in range(0, len(features), size):
            at = slice(start, start + size)
            sparse = None
            if by_row or alpha > 0:
                sparse = token_ids[at].long(), probs[at].float()
            logits = features[at] @ head.T  # (c, V)
            share = alpha[at, None] if by_row else alpha
            kl, ce, d, weight = _rows(logits, values[at, None], sparse, share)
            rows = torch.stack([share * kl + (1 - share) * ce, kl, ce])
            sums += rows.sum((1, 2))
            d = d.to(features.dtype)
            d_features[at] = (d @ head) * weight
            if head_grad is not None:
                _add_product(head_grad, d.T, (features[at] * weight).to(features.dtype))
        ctx.save_for_backward(d_features, d_head)
        loss, kl, ce = sums
        ctx.mark_non_differentiable(kl, ce)
        return loss, kl, ce

    @staticmethod
    def backward(ctx, grad, _kl, _ce):
        d_features, d_head = ctx.saved_tensors
        d_head = None if d_head is None else (grad * d_head)
        return d_features * grad.to(d_features.dtype), d_head, None, None, None, None, None


def _rows(
    logits: Tensor, value: Tensor, sparse: tuple[Tensor, Tensor] | None, alpha: float | Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (kl, ce) of a chunk's rows, (c, 1) each, and its logits' gradient as (d, weight).

    value (c, 1) is negative for rows that do not count. The gradient is weight * d, with d (c, V)
    and weight (c, 1), because it is cheaper to apply the weight to the smaller factor later.
    """
    counted = value >= 0
    value = value.clamp_min(0)
    d = torch.softmax(logits, -1, dtype=torch.float32)
    # the largest probability is at least 1 / V, so its log and lse are exact
    lse = logits.amax(-1, keepdim=True).float() - d.amax(-1, keepdim=True).log()
    ce = (lse - logits.gather(1, value)) * counted
    kl, weight = torch.zeros_like(ce), torch.ones_like(lse)
    if sparse is not None:
        token_ids, p = sparse
        kl = torch.xlogy(p, p) - p * (logits.gather(1, token_ids) - lse)
        kl = kl.sum(-1, keepdim=True) * counted
        weight = (1 - alpha) + alpha * p.sum(-1, keepdim=True)  # p may sum to less than 1, or to 0
        d.scatter_add_(1, token_ids, p * (-alpha / weight.clamp_min(TINY)))
    d.scatter_add_(1, value, (alpha - 1.0) / weight.clamp_min(TINY))
    return kl, ce, d, weight * counted


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to `total` (float32), without a temporary copy if the types are equal."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


def head_loss(
    features: Tensor,
    head: Tensor,
    values: Tensor,
    token_ids: Tensor | None = None,
    probs: Tensor | None = None,
    alpha: float | Tensor = 0.0,
    head_grad: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, kl, ce), sums over rows in nats, with gradients for features and head.

    features (R, D), head (V, D); values (R,) next tokens, negative for rows that do not count;
    token_ids, probs (R, S): a sparse distribution, padded with probability 0; alpha 0 needs none.
    alpha is one number, or one per row (R,).
    head_grad (V, D) float32, such as head.grad: the head's gradient is added to it in the forward
    pass. The loss must then be back-propagated unscaled.
    """
    by_row = isinstance(alpha, Tensor)
    if (by_row or alpha > 0) and (token_ids is None or probs is None):
        raise ValueError(f"alpha must be 0 without token_ids and probs; got {alpha}")
    return _HeadLoss.apply(features, head, values, token_ids, probs, alpha, head_grad)


@torch.no_grad()
def row_nll(features: Tensor, head: Tensor, values: Tensor) -> Tensor:
    """Return -log softmax(features @ head.T)[values] of every row, (R,) float32 nats."""
    size = chunk_rows(len(head), features.device.type)
    parts = zip(features.split(size), values.split(size), strict=True)
    return torch.cat(
        [
            torch.nn.functional.cross_entropy((f @ head.T).float(), v, reduction="none")
            for f, v in parts
        ]
    )

"""Head, cross-entropy and sparse KL in one chunked pass; (R x V) logits never exist at once.

loss = alpha * KL(knn || memory) + (1 - alpha) * CE, eq. 6 of arXiv 2508.01832. With a sparse
target p over S tokens, KL(p || q) = sum p log p - sum p * logit + logsumexp(logits), so only the
support is gathered. Gradients are formed in the forward pass, a chunk at a time, since the chunk's
logits are there and softmax(logits) - target is all they need.
"""

import torch
from torch import Tensor

CHUNK = 1024  # rows; V 4,096 in float32 makes 16 MiB, which stays near the cache


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, head, values, token_ids, probs, alpha):
        real = (values >= 0)[:, None]
        rows = int(real.sum())
        values = values.clamp_min(0)
        d_features = torch.empty_like(features)
        d_head = torch.zeros(head.shape, dtype=torch.float32, device=head.device)
        sums = torch.zeros(2, dtype=torch.float64, device=features.device)  # kl, ce
        for start in range(0, len(features), CHUNK):
            at = slice(start, start + CHUNK)
            logits = (features[at] @ head.T).float()  # (c, V)
            lse = logits.logsumexp(-1, keepdim=True)
            value = values[at, None]
            sums[1] += ((lse - logits.gather(1, value)) * real[at]).sum()
            if alpha > 0:
                p = probs[at]
                own = torch.xlogy(p, p) - p * (logits.gather(1, token_ids[at]) - lse)
                sums[0] += (own * real[at]).sum()
            d = logits.sub_(lse).exp_()
            if alpha > 0:
                d *= (1 - alpha) + alpha * p.sum(-1, keepdim=True)  # p may miss a little mass
                d.scatter_add_(1, token_ids[at], p * -alpha)
            d.scatter_add_(1, value, torch.full_like(lse, alpha - 1.0))
            d = d.mul_(real[at] / rows).to(features.dtype)
            d_features[at] = d @ head
            d_head += (d.T @ features[at]).float()
        ctx.save_for_backward(d_features, d_head.to(head.dtype))
        kl, ce = (sums / rows).float()
        ctx.mark_non_differentiable(kl, ce)
        return alpha * kl + (1 - alpha) * ce, kl, ce

    @staticmethod
    def backward(ctx, grad, _kl, _ce):
        d_features, d_head = ctx.saved_tensors
        return grad * d_features, grad * d_head, None, None, None, None


def head_loss(
    features: Tensor,
    head: Tensor,
    values: Tensor,
    token_ids: Tensor | None = None,
    probs: Tensor | None = None,
    alpha: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, kl, ce), means over rows in nats; gradients reach features and head.

    features (R, D), head (V, D), values (R,) next tokens, negative where a row does not count;
    token_ids and probs (R, S) a sparse distribution, padded with probability 0. alpha 0 needs none.
    """
    if alpha > 0 and (token_ids is None or probs is None):
        raise ValueError(f"alpha {alpha} needs token_ids and probs")
    return _HeadLoss.apply(features, head, values, token_ids, probs, alpha)

"""Attention of one query a row: in float32 where a CPU would compute it in bfloat16.

For many queries torch's kernel is as fast in bfloat16 or faster, for one it is not: a step over
1,000 tokens, 12 heads of 64, takes 640 us, and 160 in float32, the conversion included (two cores
of an AMD EPYC, torch 2.13); and it is more exact.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

NAME = "sdpa_of_a_step"  # among transformers' attention functions


def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Return what is attended to, (B, heads, Q, D), for queries so and keys (B, heads, T, D).

    causal is for Q equal to T.
    """
    wide = _widened(query, key, value)
    return F.scaled_dot_product_attention(*wide, is_causal=causal).to(query.dtype)


def use(model: nn.Module) -> None:
    """Have a transformers model on a CPU attend so, if it does by torch's kernel."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, _forward)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return what transformers' sdpa attention does; (B, Q, heads, D)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    wide = _widened(query, key, value)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.to(wide[0].dtype)
    found, _ = sdpa_attention_forward(module, *wide, attention_mask, **options)
    return found.to(query.dtype), None


def _widened(query: Tensor, *others: Tensor) -> list[Tensor]:
    """Return tensors in float32 where queries (B, heads, Q, D) are one a row on a CPU."""
    step = query.shape[2] == 1 and query.device.type == "cpu"
    return [x.float() if step else x for x in (query, *others)]

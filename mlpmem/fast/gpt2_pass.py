"""A hand-written GPT-2 forward pass over packed layers.

It covers the two passes of decoding: a complete prompt, and one token per row over a cache.
Products are fused with their GELU and residual. If only the last position is requested, the last
layer computes only that one. All other calls (padding, masks, positions, several tokens over a
cache, another family) use transformers' own pass.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from mlpmem.fast import attention
from mlpmem.fast.attention import attend
from mlpmem.fast.few_rows import FewRows
from mlpmem.fast.packed import PackedLinear

GELUS = ("gelu_new", "gelu_pytorch_tanh")  # names of the tanh form


class Layer(NamedTuple):
    """The parts of one of transformers' GPT2Blocks."""

    norm: nn.LayerNorm
    qkv: PackedLinear  # D -> 3 D
    out: PackedLinear  # D -> D
    ffn_norm: nn.LayerNorm
    up: PackedLinear  # D -> 4 D
    down: PackedLinear  # 4 D -> D


class Gpt2Pass:
    """The pass of one model; it keeps no state between calls."""

    grow_windows = False  # GPT-2 has no windows

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], depth: int) -> None:
        """Collect the parts of a GPT2LMHeadModel; the FFN input of layer depth is returned."""
        self.model, body = model, model.base_model
        self.tokens, self.positions = body.wte.weight, body.wpe.weight
        self.layers = [_layer(block) for block in layers]
        self.norm, self.head = body.ln_f, model.lm_head
        self.depth = depth % len(self.layers)
        self.heads = model.config.n_head

    @classmethod
    def of(cls, model: nn.Module, layers: Sequence[nn.Module], depth: int) -> "Gpt2Pass | None":
        """Return the pass of a GPT-2, or None if a layer is not packed.

        None, too, if its config needs anything that this pass does not implement.
        """
        if not _is_supported(model):
            return None
        result = cls(model, layers, depth)
        parts = [result.head, *(part for layer in result.layers for part in layer)]
        products = [part for part in parts if not isinstance(part, nn.LayerNorm)]
        return result if all(isinstance(part, PackedLinear) for part in products) else None

    def accepts(self, model: nn.Module, ids: Tensor, cache: Any) -> bool:
        """Return whether this pass can compute ids (B, T) over a cache for the model."""
        past, size = _length(cache), ids.shape[1]
        return (
            self.model is model
            and (size == 1 or past == 0)
            and past + size <= len(self.positions)
            and (cache is None or self._grows(cache))
        )

    def _grows(self, cache: Any) -> bool:
        """Return whether every cache layer is a plain one that holds just the tokens read."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        from mlpmem.fast.attention import GrowingLayer

        known = DynamicLayer, GrowingLayer
        layers = cache.layers if type(cache) is DynamicCache else []
        return len(layers) == len(self.layers) and all(type(x) in known for x in layers)

    def forward(
        self,
        ids: Tensor,
        cache: Any,
        last: int,
        memory: Any = None,
        words: Tensor | None = None,
        scored: int = 0,
    ) -> tuple[Tensor, Tensor, Any]:
        """Return logits (B, T, V), hidden states (B, T, D) and the cache, as Decoder.forward does.

        T is 1 if last is 1, and larger by `scored`. No memory is computed here, and no scores.
        """
        last = last and last + scored
        past, size = _length(cache), ids.shape[1]
        x = F.embedding(ids, self.tokens) + self.positions[past : past + size]  # (B, T, D)
        for i, layer in enumerate(self.layers):
            last_only = last == 1 and i == len(self.layers) - 1
            x = self._attend(layer, x, cache, i, last_only)
            ffn_input = _norm(layer.ffn_norm, x)
            if i == self.depth:
                hidden = ffn_input
            x = layer.down.plus(layer.up.gelu(ffn_input), x)
        h, head = _norm(self.norm, x[:, -last:]), self.head
        if isinstance(head, FewRows) and head.applies(h):
            logits = head.exact(h)  # in bfloat16 the best logits would often tie
        else:
            logits = head(h)
        return logits, hidden[:, -last:], cache

    def _attend(self, layer: Layer, x: Tensor, cache: Any, i: int, last_only: bool) -> Tensor:
        """Return x (B, T, D) plus layer i's attention; only the last position with last_only."""
        rows, size, width = x.shape
        qkv = layer.qkv(_norm(layer.norm, x)).view(rows, size, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, T, D / heads) each
        if cache is not None:
            key, value = cache.layers[i].update(key, value)
        if last_only:
            query, x = query[:, :, -1:], x[:, -1:]
        mixed = attend(query, key, value, causal=query.shape[2] > 1)
        return layer.out.plus(mixed.transpose(1, 2).reshape(x.shape), x)


def _layer(block: nn.Module) -> Layer:
    attention, ffn = block.attn, block.mlp
    return Layer(block.ln_1, attention.c_attn, attention.c_proj, block.ln_2, ffn.c_fc, ffn.c_proj)


def _is_supported(model: nn.Module) -> bool:
    """Return whether this pass implements the model's config."""
    config = model.config
    return (
        config.activation_function in GELUS
        and config.scale_attn_weights
        and not config.scale_attn_by_inverse_layer_idx
        and not config.add_cross_attention
        and config._attn_implementation in ("sdpa", attention.NAME)
    )


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _length(cache: Any) -> int:
    return 0 if cache is None else cache.get_seq_length()

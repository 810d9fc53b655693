"""The parts of a Llama-shaped decoder layer, and torch's operators between its products.

`layer_of` reads the parts from transformers' modules. `Operators` computes what lies between two
products; `kernels/operators.py` has its compiled form.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {"silu": False, "gelu_pytorch_tanh": True, "gelu_new": True}  # whether it is GELU
STATIC = ("default", "linear", "llama3", "yarn")  # rotations that do not depend on the length
EAGER_CAP = "attn_logit_softcapping"
Pair = tuple[Tensor, Tensor]


class Norm(NamedTuple):
    """An RMSNorm: x / rms(x) * (one + weight)."""

    module: nn.Module
    eps: float
    one: float  # 1 for the Gemma families, else 0


class Layer(NamedTuple):
    """The parts of a decoder layer in the order of their use."""

    norm: Norm
    qkv: tuple[nn.Module, ...]  # D -> (H + 2 KV) size
    head_norms: tuple[Norm, Norm] | None  # of queries and keys
    out: nn.Module
    after: Norm | None  # after attention
    ffn_norm: Norm
    gate_up: tuple[nn.Module, ...]  # D -> 2 I
    down: nn.Module
    ffn_after: Norm | None
    window: int  # positions seen at most, 0 for all
    rotation: str  # name of the rotation table, "" if there is only one
    heads: tuple[int, int, int]  # H, KV, size
    scale: float  # of scores
    cap: float  # bound of the scores (tanh), 0 for none


class Block(NamedTuple):
    """The parts of a memory's block: x + down(silu(gate) * up of norm(x))."""

    norm: Norm
    gate_up: tuple[nn.Module, nn.Module]
    down: nn.Module


class Recalled(NamedTuple):
    """What a step computed of a memory beside the decoder."""

    logits: Tensor  # (B, T, V), of the positions with a decoder's logits
    seconds: float  # its share of a step of one token; a prompt's is not measured

    def at(self, index: int) -> "Recalled":
        """Return what was computed at one position."""
        return self._replace(logits=self.logits[:, index, None])


class Door(NamedTuple):
    """What leads from a hidden state and context vectors to a memory's first block: K -> D."""

    mean: Tensor  # (K,)
    scale: Tensor  # (K,)
    linear: nn.Module  # of what is standardised by them


class Recall(NamedTuple):
    """The parts of a memory that reads a hidden state: D -> V, or with a door K -> V."""

    blocks: tuple[Block, ...]
    norm: Norm
    head: nn.Module
    door: Door | None


def layer_of(layer: nn.Module, config: Any) -> Layer:
    """Return the parts of one of transformers' layers."""
    attend, ffn = layer.self_attn, layer.mlp
    sides = hasattr(layer, "pre_feedforward_layernorm")  # norms before and after attention and FFN
    size = attend.head_dim
    heads = config.num_attention_heads, config.num_key_value_heads, size
    separate = hasattr(attend, "q_proj")
    window = getattr(attend, "sliding_window", None)
    if config.model_type in ("mistral", "phi3"):
        window = config.sliding_window
    rotation = attend.layer_type if config.model_type == "gemma3_text" else ""
    return Layer(
        norm=norm_of(layer.input_layernorm),
        qkv=(attend.q_proj, attend.k_proj, attend.v_proj) if separate else (attend.qkv_proj,),
        head_norms=(norm_of(attend.q_norm), norm_of(attend.k_norm))
        if hasattr(attend, "q_norm")
        else None,
        out=attend.o_proj,
        after=norm_of(layer.post_attention_layernorm) if sides else None,
        ffn_norm=norm_of(
            layer.pre_feedforward_layernorm if sides else layer.post_attention_layernorm
        ),
        gate_up=(ffn.gate_up_proj,)
        if hasattr(ffn, "gate_up_proj")
        else (ffn.gate_proj, ffn.up_proj),
        down=ffn.down_proj,
        ffn_after=norm_of(layer.post_feedforward_layernorm) if sides else None,
        window=window or 0,
        rotation=rotation,
        heads=heads,
        scale=float(attend.scaling),
        cap=float(getattr(attend, EAGER_CAP, None) or 0.0),
    )


def norm_of(module: nn.Module) -> Norm:
    """Return one of transformers' RMSNorms."""
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return Norm(module, eps, 1.0 if type(module).__name__.startswith("Gemma") else 0.0)


def activation_of(config: Any) -> str:
    """Return the name of the FFN's activation."""
    return getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", "")


def max_positions(config: Any) -> int:
    """Return how many positions the rotation tables are valid for."""
    ropes = config.rope_parameters
    ropes = [ropes] if "rope_type" in ropes else list(ropes.values())
    if all(rope.get("rope_type", "default") in STATIC for rope in ropes):
        return int(config.max_position_embeddings)
    return int(getattr(config, "original_max_position_embeddings", None) or 0)


class Operators:
    """What lies between two products, by torch's operators; `Kernels` is the compiled form."""

    @staticmethod
    def add_norm(
        x: Tensor, delta: Tensor, after: Norm | None, norm: Norm, dtype: torch.dtype
    ) -> Tensor:
        """Add delta, normalised by `after` if given, to x (R, D) in place; return norm(x)."""
        if len(delta):
            delta = delta.float()
            x += delta if after is None else _rms(delta, after)
        return _rms(x, norm).to(dtype)

    @staticmethod
    def gate(gate_up: Tensor, gelu: bool) -> Tensor:
        """Return act(gate) * up (R, I) of gate_up (R, 2 I)."""
        gate, up = gate_up.float().chunk(2, dim=-1)
        activated = F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)
        return (activated * up).to(gate_up.dtype)

    @staticmethod
    def rotate(
        qkv: Tensor, layer: Layer, table: Pair, past: int, buffers: Pair, step: bool
    ) -> Tensor:
        """Return rotated queries (B, T, H, size) of qkv (B, T, (H + 2 KV) size).

        Keys and values are written into buffers (B, KV, room, size) from position `past` on.
        Queries of a step are float32.
        """
        (rows, size, _), (heads, kv_heads, width) = qkv.shape, layer.heads
        split = qkv.view(rows, size, -1, width)
        rotated = split[:, :, : heads + kv_heads].float()
        if layer.head_norms is not None:
            parts = rotated.split([heads, kv_heads], dim=2)
            pairs = zip(parts, layer.head_norms, strict=True)
            rotated = torch.cat([_rms(part, norm) for part, norm in pairs], dim=2)
        cos, sin = (part[past : past + size, None] for part in table)
        half = cos.shape[-1]
        a, b, rest = rotated.split([half, half, width - 2 * half], dim=-1)
        rotated = torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)
        (keys, values), span = buffers, slice(past, past + size)
        keys[:, :, span] = rotated[:, :, heads:].transpose(1, 2)
        values[:, :, span] = split[:, :, heads + kv_heads :].transpose(1, 2)
        queries = rotated[:, :, :heads]
        return queries if step else queries.to(keys.dtype)

    @staticmethod
    def attend(
        q: Tensor, buffers: Pair, span: tuple[int, int], layer: Layer, dtype: torch.dtype
    ) -> Tensor:
        """Return attention (B, H size) in dtype of one query per row (B, H, size) over a span."""
        keys, values = (x[:, :, slice(*span)].float() for x in buffers)
        return attend_many(q[:, None], keys, values, layer._replace(window=0)).flatten(1).to(dtype)


def attend_many(q: Tensor, keys: Tensor, values: Tensor, layer: Layer) -> Tensor:
    """Return the attention (B, Q, H, size) of queries (B, Q, H, size).

    Keys and values are (B, KV, T, size); the queries are those of the last Q of T positions.
    """
    query, (heads, kv_heads, _) = q.transpose(1, 2), layer.heads
    if heads != kv_heads:
        keys, values = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (keys, values))
    mask = _mask(query.shape[2], keys.shape[2], layer)
    if not layer.cap:
        options = {"attn_mask": mask, "is_causal": mask is None and query.shape[2] > 1}
        output = F.scaled_dot_product_attention(query, keys, values, scale=layer.scale, **options)
        return output.transpose(1, 2)
    scores = (query.float() @ keys.float().transpose(2, 3)) * layer.scale
    scores = (scores / layer.cap).tanh() * layer.cap
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ values.float()).to(values.dtype).transpose(1, 2)


def _mask(count: int, total: int, layer: Layer) -> Tensor | None:
    """Return which of the last `count` positions see which of `total`, None if not needed."""
    if count == 1 or (count == total and not layer.cap and not 0 < layer.window < total):
        return None
    distance = torch.arange(total - count, total)[:, None] - torch.arange(total)
    mask = distance >= 0
    return mask & (distance < layer.window) if layer.window else mask


def _rms(x: Tensor, norm: Norm) -> Tensor:
    """Return x (..., D) float32, normalised."""
    weight = norm.module.weight.float()
    return F.rms_norm(x, weight.shape, weight + norm.one if norm.one else weight, norm.eps)

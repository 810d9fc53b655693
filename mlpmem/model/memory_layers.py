"""What a memory is built of: its door, and the blocks and norms of both layouts.

A block has a norm and an FFN, under the state-dict names of the authors' published checkpoints.
Norms compute in float32.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpmem.fast.linear import Conv1D
from mlpmem.fast.llama_layers import Door as DoorParts


class Sizes(Protocol):
    """The numbers of a memory's config that its blocks are built by."""

    @property
    def hidden_size(self) -> int:
        """Return D."""

    @property
    def intermediate_size(self) -> int:
        """Return the width of an FFN."""

    @property
    def norm_eps(self) -> float:
        """Return what a norm adds to the mean square."""


class Door(nn.Module):
    """Standardised hidden state and context vectors to a block's input, K -> D."""

    def __init__(self, inputs: int, size: int) -> None:
        """Make a door that lets the hidden state through as it is, standardised."""
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.linear = nn.Linear(inputs, size, bias=False)

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        """Start as the identity on the hidden state, with context vectors drawn from N(0, std)."""
        nn.init.normal_(self.linear.weight, std=std)
        size = len(self.linear.weight)
        self.linear.weight[:, :size] = torch.eye(size)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., D) of (..., K)."""
        return self.linear((x - self.mean) / self.scale)

    @property
    def parts(self) -> DoorParts:
        """Return the parts that a compiled step reads."""
        return DoorParts(self.mean, self.scale, self.linear)


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32 for inputs of any dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., D) normalised, in its own dtype."""
        if x.dtype == self.weight.dtype:  # torch itself computes it in float32
            return super().forward(x).to(x.dtype)
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """RMSNorm computed in float32 for inputs of any dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., D) normalised, in its own dtype."""
        if x.dtype == self.weight.dtype:  # torch itself computes it in float32
            return super().forward(x).to(x.dtype)
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(
            x.dtype
        )


class Gpt2FFN(nn.Module):
    """D -> 4 D -> D with GELU (tanh form)."""

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.hidden_size, config.intermediate_size)
        self.c_proj = Conv1D(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return FFN(x (..., D)) + residual (..., D)."""
        return self.c_proj.plus(self.c_fc.gelu(x), residual)


class LlamaFFN(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        inner, outer = config.intermediate_size, config.hidden_size
        self.gate_proj = nn.Linear(outer, inner, bias=False)
        self.up_proj = nn.Linear(outer, inner, bias=False)
        self.down_proj = nn.Linear(inner, outer, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gpt2Block(nn.Module):
    """x + FFN(LayerNorm(x)), under GPT-2's names."""

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = Gpt2FFN(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_1(x), x)


class LlamaBlock(nn.Module):
    """x + FFN(RMSNorm(x)), under Llama's names."""

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = LlamaFFN(config)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.input_layernorm(x))


# family: (block, name of the blocks, norm, name of the last norm), with the checkpoints' names
LAYOUTS = {
    "gpt2": (Gpt2Block, "h", LayerNorm, "ln_f"),
    "llama": (LlamaBlock, "layers", RMSNorm, "norm"),
}

"""What a memory is made of: norms, FFNs and blocks, under the published checkpoints' names."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from mlpmem.model.memory import MemoryConfig


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32 whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., D) normalised, in x's dtype."""
        if x.dtype == self.weight.dtype:  # torch itself computes it in float32
            return super().forward(x).to(x.dtype)
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """RMSNorm computed in float32 whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., D) normalised, in x's dtype."""
        if x.dtype == self.weight.dtype:  # torch itself computes it in float32
            return super().forward(x).to(x.dtype)
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(
            x.dtype
        )


class Conv1D(nn.Module):
    """A linear layer whose weight is stored (in, out), as GPT-2's are."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Make weight (inputs, outputs) and bias (outputs,)."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., inputs) @ weight + bias."""
        return F.linear(x, self.weight.T, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU, in its tanh form, of what forward returns; packed layers do both at once."""
        return F.gelu(self(x), approximate="tanh")

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return what forward returns, added to residual; packed layers do both at once."""
        return residual + self(x)


class Gpt2FFN(nn.Module):
    """D -> 4 D -> D with GELU in its tanh form."""

    def __init__(self, config: "MemoryConfig") -> None:
        """Make the two layers."""
        super().__init__()
        self.c_fc = Conv1D(config.hidden_size, config.intermediate_size)
        self.c_proj = Conv1D(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return the FFN of x (..., D), added to residual (..., D)."""
        return self.c_proj.plus(self.c_fc.gelu(x), residual)


class LlamaFFN(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, config: "MemoryConfig") -> None:
        """Make the three layers."""
        super().__init__()
        inner, outer = config.intermediate_size, config.hidden_size
        self.gate_proj = nn.Linear(outer, inner, bias=False)
        self.up_proj = nn.Linear(outer, inner, bias=False)
        self.down_proj = nn.Linear(inner, outer, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the FFN of x (..., D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gpt2Block(nn.Module):
    """x + FFN(LayerNorm(x)), under GPT-2's names."""

    def __init__(self, config: "MemoryConfig") -> None:
        """Make norm and FFN."""
        super().__init__()
        self.ln_1 = LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = Gpt2FFN(config)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (..., D)."""
        return self.mlp(self.ln_1(x), x)


class LlamaBlock(nn.Module):
    """x + FFN(RMSNorm(x)), under Llama's names."""

    def __init__(self, config: "MemoryConfig") -> None:
        """Make norm and FFN."""
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = LlamaFFN(config)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (..., D)."""
        return x + self.mlp(self.input_layernorm(x))


# family: (block, name of the blocks, norm, name of the last norm), the names of the checkpoints
LAYOUTS = {
    "gpt2": (Gpt2Block, "h", LayerNorm, "ln_f"),
    "llama": (LlamaBlock, "layers", RMSNorm, "norm"),
}

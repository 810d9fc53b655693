"""A linear layer with its weight in oneDNN's fastest layout, and one with an adapter beside it.

linear.py builds and checks packed layers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpmem.errors import MlpMemError

ROWS = 512  # rows that the layout is chosen for; for 1 row it measured as fast as a layout for 1


class PackedLinear(nn.Module):
    """A linear layer with a packed weight (outputs, inputs)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, transposed: bool) -> None:
        """Pack weight (outputs, inputs); a transposed layer is saved as (inputs, outputs)."""
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
        self.bias, self.transposed = bias, transposed

    @property
    def bytes(self) -> int:
        return self.weight.numel() * self.weight.element_size()

    @property
    def shape(self) -> tuple[int, int]:
        """Return (outputs, inputs)."""
        return tuple(self.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., inputs) @ weight.T + bias."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU (tanh form) of forward(x)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu", [], "tanh")

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return forward(x) + residual (..., outputs)."""
        product = torch.ops.mkldnn._linear_pointwise.binary
        return product(x, residual, self.weight, self.bias, "add")

    def dense(self) -> Tensor:
        """Return the weight (outputs, inputs) as a plain tensor."""
        return self.weight.to_dense()

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        """Save the weight as a plain tensor in its original layout."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        weight = self.dense()
        destination[prefix + "weight"] = weight.T.contiguous() if self.transposed else weight

    def _apply(self, fn: Any, recurse: bool = True) -> "PackedLinear":
        """Raise MlpMemError: a packed weight keeps its device and dtype."""
        raise MlpMemError(
            "packed weights cannot be moved or converted; load the model without dtype for that"
        )


class AdaptedLinear(PackedLinear):
    """A packed layer plus a low-rank product in float32: what LoRA adds to its weight."""

    def __init__(self, base: PackedLinear, down: Tensor, up: Tensor) -> None:
        """Add up (outputs, r) @ down (r, inputs) to base, which may be shared."""
        nn.Module.__init__(self)
        self.base, self.down, self.up = base, down, up
        self.transposed = base.transposed

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def shape(self) -> tuple[int, int]:
        """Return (outputs, inputs)."""
        return self.base.shape

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def bytes(self) -> int:
        """Return the size of the factors; the base counts itself."""
        return self.down.nbytes + self.up.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., inputs) @ (weight + up @ down).T + bias, in x's dtype."""
        added = F.linear(F.linear(x.float(), self.down), self.up)
        return (self.base(x).float() + added).to(x.dtype)

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU (tanh form) of forward(x)."""
        return F.gelu(self(x), approximate="tanh")

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return forward(x) + residual (..., outputs)."""
        return residual + self(x)

    def dense(self) -> Tensor:
        """Return the weight (outputs, inputs) as a plain tensor."""
        weight = self.base.dense()
        return (weight.float() + self.up @ self.down).to(weight.dtype)

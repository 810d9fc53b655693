"""Linear layers whose weights lie as oneDNN reads them: decoding on a CPU at memory bandwidth.

The two operators are private to torch, so every layer is checked against a plain product when it
is packed, and stays as it was where the operators are missing or wrong. Packed layers answer and
are saved like others; they cannot be moved or converted.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpmem.errors import MlpMemError
from mlpmem.memory import Conv1D

# largest relative error of a packed product against the plain one in float32
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
ROWS = 512  # rows the layout is chosen for; measured as good for 1 as a layout for 1 is


class PackedLinear(nn.Module):
    """A linear layer with a packed weight (outputs, inputs)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, transposed: bool) -> None:
        """Pack weight (outputs, inputs); transposed says how it was stored and will be saved."""
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
        self.bias, self.transposed = bias, transposed

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., inputs) @ weight.T + bias."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        """Save the weight as it was stored."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        weight = self.weight.to_dense()
        destination[prefix + "weight"] = weight.T.contiguous() if self.transposed else weight

    def _apply(self, fn: Any, recurse: bool = True) -> "PackedLinear":
        """Raise MlpMemError: a packed weight stays where and what it is."""
        raise MlpMemError(
            "packed weights cannot be moved or converted; load the model without dtype for that"
        )


def pack(module: nn.Module) -> int:
    """Pack every linear layer of module that lies on a CPU; return how many were packed.

    Tied weights are packed apart: the embedding keeps the table. GPT-2's GELU, six operators in
    transformers, becomes the one operator that computes the same.
    """
    from transformers.activations import NewGELUActivation
    from transformers.pytorch_utils import Conv1D as TheirConv1D

    packed = 0
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) in (nn.Linear, Conv1D, TheirConv1D):
                made = _packed(layer, type(layer) is not nn.Linear)
                if made is not None:
                    setattr(parent, name, made)
                    packed += 1
            elif type(layer) is NewGELUActivation:
                setattr(parent, name, nn.GELU(approximate="tanh"))
    return packed


@torch.inference_mode(False)
@torch.no_grad()
def _packed(layer: nn.Module, transposed: bool) -> PackedLinear | None:
    """Return a layer packed; None where that is not possible or its products are wrong."""
    weight = layer.weight.T if transposed else layer.weight  # (outputs, inputs)
    if weight.device.type != "cpu" or weight.dtype not in TOLERANCE:
        return None
    try:
        made = PackedLinear(weight, layer.bias, transposed)
        luck = torch.Generator().manual_seed(0)
        x = torch.randn(2, weight.shape[1], generator=luck).to(weight.dtype)
        found = made(x).float()
    except (AttributeError, RuntimeError):  # no such operator, or none for this CPU
        return None
    bias = layer.bias.float() if layer.bias is not None else None
    wanted = F.linear(x.float(), weight.float(), bias)
    error = float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))
    return made if error <= TOLERANCE[weight.dtype] else None


def weights_of(module: nn.Module) -> list[Tensor]:
    """Return every weight that a module holds, packed or plain, each once."""
    plain = {p.data_ptr(): p for p in module.parameters()}
    packed = [m.weight for m in module.modules() if isinstance(m, PackedLinear)]
    return [*plain.values(), *packed]


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype of a name; MlpMemError where it is none that answers here."""
    known = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE}
    if name not in known:
        raise MlpMemError(f"dtype is {name!r}; use {' or '.join(known)}, or None to leave weights")
    return known[name]

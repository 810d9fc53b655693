"""Linear layers packed for a CPU, so that decoding runs at memory bandwidth.

Weights keep their dtype in oneDNN's layout, or become 8 or 4 bits. Where code is compiled for the
layers, only weights are rounded (few_rows.py; for 4 bits of any family, small_products.py).
Elsewhere inputs of 8-bit weights are rounded to 7 bits on the fly, all rows by one scale: a batch
differs from single rows, by much for some decoders.
The operators are private to torch, so each layer is checked against a plain product and stays plain
if they are missing or wrong. Packed layers are saved as usual; they cannot be moved or converted.
"""

import time
import warnings
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpmem.errors import MlpMemError
from mlpmem.fast.few_rows import FewRows, can_be_lanes, lanes, rounded
from mlpmem.fast.packed import PackedLinear

# largest relative error of a packed product against the plain one in float32
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
TOLERANCE_INT8 = 6e-2
FORMS = {  # name: (dtype that weights are read in, bits that they are rounded to, or 0)
    "float32": (torch.float32, 0),
    "bfloat16": (torch.bfloat16, 0),
    "int8": (torch.bfloat16, 8),
    "int4": (torch.bfloat16, 4),
}


class Int8Linear(PackedLinear):
    """A linear layer with an 8-bit weight; `weight` only keeps the shape and dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None, transposed: bool) -> None:
        """Round weight (outputs, inputs) with one scale per output and pack it."""
        nn.Module.__init__(self)
        self.weight = weight.new_zeros(1, 1).expand(weight.shape)
        self.bias, self.transposed = bias, transposed
        scales = weight.float().abs().amax(1).clamp_min(1e-12) / 127
        zeros = torch.zeros(len(weight), dtype=torch.long)
        bias = bias.float() if bias is not None else None
        with warnings.catch_warnings():  # removed in a later torch; layers then stay plain
            warnings.filterwarnings("ignore", message=".*quantize_per_channel")
            rounded = torch.quantize_per_channel(weight.float(), scales, zeros, 0, torch.qint8)
            self._packed = torch.ops.quantized.linear_prepack(rounded, bias)

    @property
    def bytes(self) -> int:
        return self.weight.numel() + 4 * len(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., inputs) @ weight.T + bias, in x's dtype."""
        return torch.ops.quantized.linear_dynamic(x.float(), self._packed, True).to(x.dtype)

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU (tanh form) of forward(x)."""
        return F.gelu(self(x), approximate="tanh")

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return forward(x) + residual (..., outputs)."""
        return residual + self(x)

    def dense(self) -> Tensor:
        """Return the rounded weight (outputs, inputs) as a plain tensor in its original dtype."""
        rounded, _ = torch.ops.quantized.linear_unpack(self._packed)
        return rounded.dequantize().to(self.weight.dtype)


def pack(module: nn.Module, bits: int = 0, compiled: bool = False) -> int:
    """Pack every linear layer of module on a CPU; return how many were packed.

    bits is 8 or 4 for rounded weights, else 0. If code is compiled for these layers, 8 bits round
    the weights only; otherwise their inputs too. A tied head gets a packed copy; the embedding
    keeps its table. GPT-2's GELU, six operators in transformers, becomes one equivalent operator.
    """
    from transformers.activations import NewGELUActivation
    from transformers.pytorch_utils import Conv1D as TheirConv1D

    packed = 0
    tables = {m.weight.data_ptr() for m in module.modules() if isinstance(m, nn.Embedding)}
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear | Conv1D | TheirConv1D):
                new = _packed(layer, bits == 8 and not compiled)
                if new is not None and (bits == 4 or bits == 8 and compiled):
                    new = _few_rows(layer, new, bits == 8 or name in HEADS, tables)
                if new is not None:
                    new._forward_pre_hooks.update(layer._forward_pre_hooks)  # OPT's FFN is a layer
                    setattr(parent, name, new)
                    packed += 1
            elif type(layer) is NewGELUActivation:
                setattr(parent, name, nn.GELU(approximate="tanh"))
    return packed


HEADS = ("lm_head", "embed_out")  # with bits 4, a head gets 8: it decides the answer


@torch.inference_mode(False)
@torch.no_grad()
def _few_rows(
    layer: nn.Module, packed: PackedLinear | None, eight: bool, tables: set[int]
) -> PackedLinear | None:
    """Return a layer in its packed and its small form, of 8 bits or 4.

    tables holds the addresses of embedding tables.
    """
    weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.T
    blocks = getattr(layer, "blocks", None)
    if weight.data_ptr() in tables:
        return FewRows(layer, None, partial(rounded, weight, blocks, eight))
    if blocks is not None and blocks.bits == 4 and packed is not None and can_be_lanes(weight):
        return FewRows(layer, packed, lambda: lanes(*blocks.read()))
    small = rounded(weight, blocks, eight)
    if blocks is None:  # both forms hold equal numbers
        plain = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
        plain.weight = nn.Parameter(small.dense().to(weight.dtype), requires_grad=False)
        plain.bias = layer.bias
        packed = _packed(plain, False)
    return None if packed is None else FewRows(layer, packed, small)


@torch.inference_mode(False)
@torch.no_grad()
def _packed(layer: nn.Module, int8: bool) -> PackedLinear | None:
    """Return a packed layer, or None if that is not possible or its products are wrong.

    This also excludes subclasses of nn.Linear that compute something else.
    """
    transposed = not isinstance(layer, nn.Linear)
    weight = layer.weight.T if transposed else layer.weight  # (outputs, inputs)
    if weight.device.type != "cpu" or weight.dtype not in TOLERANCE:
        return None
    try:
        packed = (Int8Linear if int8 else PackedLinear)(weight, layer.bias, transposed)
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(2, weight.shape[1], generator=rng).to(weight.dtype)
        residual = torch.randn(2, weight.shape[0], generator=rng).to(weight.dtype)
        outputs = packed(x), packed.gelu(x), packed.plus(x, residual), layer.forward(x)
    except (AttributeError, RuntimeError):  # the operator is missing, or not for this CPU
        return None
    bias = layer.bias.float() if layer.bias is not None else None
    plain = F.linear(x.float(), weight.float(), bias)
    expected = plain, F.gelu(plain, approximate="tanh"), residual.float() + plain, plain
    tolerance = TOLERANCE_INT8 if int8 else TOLERANCE[weight.dtype]
    correct = all(_error(a, b) <= tolerance for a, b in zip(outputs, expected, strict=True))
    return packed if correct else None


def _error(output: Tensor, expected: Tensor) -> float:
    """Return the relative error of a product."""
    return float((output.float() - expected).norm() / expected.norm().clamp_min(1e-30))


def bytes_of(module: nn.Module, but: nn.Module | None = None) -> int:
    """Return the size of a module's weights, packed or plain, each counted once, without `but`."""
    left_out = set() if but is None else set(but.modules())
    parts = [part for part in module.modules() if part not in left_out]
    plain = {p.data_ptr(): p.nbytes for part in parts for p in part.parameters(recurse=False)}
    packed = [part.bytes for part in parts if isinstance(part, PackedLinear)]
    return sum(plain.values()) + sum(packed)


def bfloat16_is_faster(rows: int = 32, size: int = 1024, rounds: int = 3) -> bool:
    """Return whether this CPU multiplies bfloat16 faster than float32, as measured now.

    With AMX it is seven times faster; without, it may be slower.
    """
    seconds = {}
    for dtype in (torch.bfloat16, torch.float32) * rounds:
        x, layer = torch.ones(rows, size, dtype=dtype), nn.Linear(size, size, False, dtype=dtype)
        product = _packed(layer.requires_grad_(False), False) or layer
        product(x)
        begin = time.perf_counter()
        product(x)
        seconds.setdefault(dtype, []).append(time.perf_counter() - begin)
    return min(seconds[torch.bfloat16]) < min(seconds[torch.float32])


def form_of(name: str) -> tuple[torch.dtype, int]:
    """Return (dtype that weights are read in, bits that they are rounded to, or 0).

    MlpMemError for an unknown name.
    """
    if name not in FORMS:
        raise MlpMemError(f"dtype must be one of {', '.join(FORMS)}, or None; got {name!r}")
    return FORMS[name]


class Conv1D(nn.Module):
    """A linear layer whose weight is stored (in, out), as in GPT-2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Allocate weight (inputs, outputs) and bias (outputs,)."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., inputs) @ weight + bias."""
        return F.linear(x, self.weight.T, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU (tanh form) of forward(x); packed layers compute both at once."""
        return F.gelu(self(x), approximate="tanh")

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return forward(x) + residual; packed layers compute both at once."""
        return residual + self(x)

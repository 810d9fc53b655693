"""Linear layers with a second, small form: 4 bits in lanes, or 8 bits row by row.

Decoding reads every weight once per token, so smaller weights decode faster. Compiled code reads
the small forms (kernels/step.py). Until it is compiled, the packed form computes everything;
afterwards it still computes many rows where it is faster, as `settle` measures. Both forms hold the
same numbers, up to the dtype's rounding.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpmem.fast.packed import PackedLinear

LANES, GROUP = 16, 32  # outputs side by side; inputs that share a scale
FEW = 4  # rows
CHUNK = 2**22  # numbers rounded at once
SLACK = 1.6  # times the packed form's seconds: not worth holding a weight twice


class Lanes(NamedTuple):
    """A weight in 4 bits. Byte j of a group has input j in its low and j + 16 in its high half."""

    q: Tensor  # (outputs / LANES, groups, GROUP / 2, LANES) uint8
    scales: Tensor  # (outputs / LANES, groups, 2, LANES) float16: scale, offset

    @property
    def inputs(self) -> int:
        return self.q.shape[1] * GROUP

    @property
    def outputs(self) -> int:
        return len(self.q) * LANES

    @property
    def bytes(self) -> int:
        return self.q.nbytes + self.scales.nbytes

    def dense(self) -> Tensor:
        """Return the weight (outputs, inputs) float32."""
        q = torch.cat([self.q & 15, self.q >> 4], 2)  # (blocks, groups, GROUP, LANES)
        scale, offset = self.scales.float().split(1, dim=2)
        return (q * scale + offset).permute(0, 3, 1, 2).flatten(2).flatten(0, 1)


class Rows(NamedTuple):
    """A weight in 8 bits, with one scale per output."""

    q: Tensor  # (outputs, inputs) int8
    scales: Tensor  # (outputs,) float32

    @property
    def inputs(self) -> int:
        return self.q.shape[1]

    @property
    def outputs(self) -> int:
        return len(self.q)

    @property
    def bytes(self) -> int:
        return self.q.nbytes + self.scales.nbytes

    def dense(self) -> Tensor:
        """Return the weight (outputs, inputs) float32."""
        return self.q * self.scales[:, None]


class FewRows(PackedLinear):
    """A linear layer in both forms; one tied to an embedding has the table instead of packed."""

    product: Any = None  # (small, x (R, inputs) float32) -> (R, outputs), once compiled
    probing = False  # whether the small form computes all rows, by torch's operators

    def __init__(
        self,
        layer: nn.Module,
        packed: PackedLinear | None,
        small: Lanes | Rows | Callable[[], Lanes | Rows],
    ) -> None:
        """Take the small form, or what makes it: nothing reads it before code is compiled."""
        nn.Module.__init__(self)
        self.packed, made = packed is not None, isinstance(small, Lanes | Rows)
        self._small, self._make = (small, None) if made else (None, small)
        self.weight = layer.weight if packed is None else packed.weight
        self.bias, self.transposed = layer.bias, not isinstance(layer, nn.Linear)

    @property
    def small(self) -> Lanes | Rows:
        """Return the small form, which is held from now on."""
        if self._small is None:
            with torch.inference_mode(False), torch.no_grad():
                self._small = self._make()
        return self._small

    @property
    def bytes(self) -> int:
        """Return the size of the forms that are held; a shared table counts with its embedding."""
        small = 0 if self._small is None else self._small.bytes
        return small + (super().bytes if self.packed and self.weight is not None else 0)

    @property
    def shape(self) -> tuple[int, int]:
        """Return (outputs, inputs)."""
        weight = self.weight  # another thread may release it
        return (self.small.outputs, self.small.inputs) if weight is None else tuple(weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., inputs) @ weight.T + bias."""
        if self.probing:
            bias = None if self.bias is None else self.bias.float()
            small = self._small or self._make()  # only for this product, if it is not held
            return F.linear(x.float(), small.dense(), bias).to(x.dtype)
        weight = self.weight  # another thread may release it
        if FewRows.product is not None and (weight is None or self.applies(x)):
            output = self.exact(x)
            return (output if self.bias is None else output + self.bias).to(x.dtype)
        if not self.packed:
            return F.linear(x, weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")

    def applies(self, x: Tensor) -> bool:
        """Return whether compiled code and the small form are ready, and x has few rows."""
        made = FewRows.product is not None and self._small is not None
        return made and x.numel() <= FEW * x.shape[-1]

    def exact(self, x: Tensor) -> Tensor:
        """Return x (..., inputs) @ weight.T in float32, by compiled code."""
        output = FewRows.product(self.small, x.reshape(-1, x.shape[-1]).float())
        return output.view(*x.shape[:-1], -1)

    @property
    def is_released(self) -> bool:
        """Return whether only the small form is left."""
        return self.weight is None

    def release(self) -> None:
        """Free the packed form; only the small form stays."""
        self.weight = None

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU (tanh form) of forward(x)."""
        return F.gelu(self(x), approximate="tanh")

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return forward(x) + residual (..., outputs)."""
        return residual + self(x)

    def dense(self) -> Tensor:
        """Return the weight (outputs, inputs) as a plain tensor."""
        if self.weight is None:
            return self.small.dense().bfloat16()
        return super().dense() if self.packed else self.weight


@contextmanager
def small_forms(model: nn.Module) -> Iterator[None]:
    """Compute with the small forms only, compiled or not; slow, and for a model nobody else uses.

    What rounding changes can so be measured before anything is compiled.
    """
    layers = [module for module in model.modules() if isinstance(module, FewRows)]
    for layer in layers:
        layer.probing = True
    try:
        yield
    finally:
        for layer in layers:
            del layer.probing


def settle(model: nn.Module, rows: int = 32) -> None:
    """Free the packed forms if compiled code is about as fast for so many rows.

    Weights are then held once.
    """
    layers = [
        m for m in model.modules() if isinstance(m, FewRows) and m.packed and m.weight is not None
    ]
    packed = small = math.inf
    for _ in range(3 if layers else 0):  # in turns: OpenMP's threads spin after a packed product
        packed = min(packed, _seconds(layers, rows, PackedLinear.forward))
        small = min(small, _seconds(layers, rows, _small))
    if small <= SLACK * packed:
        for layer in layers:
            layer.release()


def _small(layer: FewRows, x: Tensor) -> Tensor:
    """Return x (rows, inputs) @ weight.T by the small form."""
    return FewRows.product(layer.small, x.float())


def _seconds(
    layers: list[FewRows], rows: int, product: Callable[[FewRows, Tensor], Tensor]
) -> float:
    """Return the seconds of one product of every layer, after one that is not counted."""
    inputs = {layer.small.inputs for layer in layers}
    x = {size: torch.ones(rows, size, dtype=layers[0].weight.dtype) for size in inputs}
    product(layers[0], x[layers[0].small.inputs])
    begin = time.perf_counter()
    for layer in layers:
        product(layer, x[layer.small.inputs])
    return time.perf_counter() - begin


def rounded(weight: Tensor, blocks: Any, eight: bool) -> Lanes | Rows:
    """Return a weight (outputs, inputs) in 4 bits, or in 8 bits if asked for or of odd shape.

    blocks are the quantised integers of a GGUF file, or None. 4-bit blocks are used unchanged,
    others become 8 bits.
    """
    if not can_be_lanes(weight) or (eight if blocks is None else blocks.bits != 4):
        return eight_bits(weight)
    return four_bits(weight) if blocks is None else lanes(*blocks.read())


def can_be_lanes(weight: Tensor) -> bool:
    """Return whether a weight's shape (outputs, inputs) is one of whole lanes and groups."""
    outputs, inputs = weight.shape
    return not outputs % LANES and not inputs % GROUP


def eight_bits(weight: Tensor) -> Rows:
    """Return a weight (outputs, inputs) rounded to 8 bits."""
    q = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight))
    step = max(1, CHUNK // weight.shape[1])
    for first in range(0, len(weight), step):
        rows = weight[first : first + step].float()
        scale = rows.abs().amax(1).clamp_min(1e-12) / 127
        q[first : first + step] = (rows / scale[:, None]).round().to(torch.int8)
        scales[first : first + step] = scale
    return Rows(q, scales)


def four_bits(weight: Tensor) -> Lanes:
    """Return a weight (outputs, inputs) in 4 bits, each group from its minimum to its maximum."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(2), groups.amax(2)
    scale, offset = ((x.half().float()) for x in ((high - low) / 15, low))
    q = ((groups - offset[..., None]) / scale.clamp_min(1e-12)[..., None]).round().clamp(0, 15)
    return lanes(q.to(torch.int8).flatten(1), scale, offset)


def lanes(q: Tensor, scale: Tensor, offset: Tensor | None) -> Lanes:
    """Return integers (outputs, inputs) int8, scales and offsets (outputs, groups) in lanes.

    Integers are 0 to 15, or -8 to 7 without offsets.
    """
    if offset is None:
        q, offset = q + 8, -8 * scale
    blocks = len(q) // LANES, LANES, -1
    q = q.view(torch.uint8).view(*blocks, 2, GROUP // 2)  # (blocks, LANES, groups, halves, 16)
    q = (q[..., 0, :] | (q[..., 1, :] << 4)).permute(0, 2, 3, 1).contiguous()
    scales = torch.stack([scale.view(blocks), offset.view(blocks)], -1)
    return Lanes(q, scales.permute(0, 2, 3, 1).half().contiguous())

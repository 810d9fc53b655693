"""Linear layers in a second, small form: 4 bits in lanes, or 8 bits row by row.

Decoding reads every weight once a token, so what is small is fast. Compiled code reads the small
forms (step_kernels.py); until it is there the packed form answers everything, and afterwards many
rows where it is faster, as `settle` measures. Both hold the same numbers, to the dtype's
rounding.
"""

import time
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpmem.fast.packed import PackedLinear

LANES, GROUP = 16, 32  # outputs side by side; inputs that share a scale
FEW = 4  # rows
CHUNK = 2**22  # numbers that are rounded at once
ALIKE = 1.3  # times the packed form's seconds: not worth holding a weight twice


class Lanes(NamedTuple):
    """A weight in 4 bits. Byte j of a group has input j in its low and j + 16 in its high half."""

    q: Tensor  # (outputs / LANES, groups, GROUP / 2, LANES) uint8
    scales: Tensor  # (outputs / LANES, groups, 2, LANES) float16: scale, offset

    @property
    def inputs(self) -> int:
        """Return the number of inputs."""
        return self.q.shape[1] * GROUP

    @property
    def bytes(self) -> int:
        """Return the size."""
        return self.q.nbytes + self.scales.nbytes

    def dense(self) -> Tensor:
        """Return the weight (outputs, inputs) float32."""
        q = torch.cat([self.q & 15, self.q >> 4], 2)  # (blocks, groups, GROUP, LANES)
        scale, offset = self.scales.float().split(1, dim=2)
        return (q * scale + offset).permute(0, 3, 1, 2).flatten(2).flatten(0, 1)


class Rows(NamedTuple):
    """A weight in 8 bits, a scale an output."""

    q: Tensor  # (outputs, inputs) int8
    scales: Tensor  # (outputs,) float32

    @property
    def inputs(self) -> int:
        """Return the number of inputs."""
        return self.q.shape[1]

    @property
    def bytes(self) -> int:
        """Return the size."""
        return self.q.nbytes + self.scales.nbytes

    def dense(self) -> Tensor:
        """Return the weight (outputs, inputs) float32."""
        return self.q * self.scales[:, None]


class FewRows(PackedLinear):
    """A linear layer in both forms; without a packed one, its weight is an embedding's table."""

    product: Any = None  # (small, x (R, inputs) float32) -> (R, outputs), once it is compiled

    def __init__(self, layer: nn.Module, packed: PackedLinear | None, small: Lanes | Rows) -> None:
        """Take a layer and its other forms."""
        nn.Module.__init__(self)
        self.packed, self.small = packed is not None, small
        self.weight = layer.weight if packed is None else packed.weight
        self.bias, self.transposed = layer.bias, not isinstance(layer, nn.Linear)

    @property
    def bytes(self) -> int:
        """Return the size of both forms; a table counts where it is."""
        held = self.packed and self.weight is not None
        return self.small.bytes + (super().bytes if held else 0)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., inputs) @ weight.T + bias."""
        weight = self.weight  # another thread may release it
        if FewRows.product is not None and (weight is None or self.counts(x)):
            found = self.exact(x)
            return (found if self.bias is None else found + self.bias).to(x.dtype)
        if not self.packed:
            return F.linear(x, weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")

    def counts(self, x: Tensor) -> bool:
        """Return whether x (..., inputs) is few rows, and compiled code is there."""
        return FewRows.product is not None and x.numel() <= FEW * x.shape[-1]

    def exact(self, x: Tensor) -> Tensor:
        """Return x (..., inputs) @ weight.T in float32, by compiled code."""
        found = FewRows.product(self.small, x.reshape(-1, x.shape[-1]).float())
        return found.view(*x.shape[:-1], -1)

    def release(self) -> None:
        """Hold the weight in its small form alone."""
        self.weight = None

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU, in its tanh form, of what forward returns."""
        return F.gelu(self(x), approximate="tanh")

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return what forward returns, added to residual (..., outputs)."""
        return residual + self(x)

    def dense(self) -> Tensor:
        """Return the weight (outputs, inputs) as a plain tensor."""
        if self.weight is None:
            return self.small.dense().bfloat16()
        return super().dense() if self.packed else self.weight


def settle(model: nn.Module, rows: int = 32) -> None:
    """Give the packed forms up where compiled code takes no longer for so many rows.

    Weights are then held once.
    """
    layers = [
        m for m in model.modules() if isinstance(m, FewRows) and m.packed and m.weight is not None
    ]
    layers = [layer for layer in layers if isinstance(layer.small, Lanes)]
    took = []
    for _ in range(3 if layers else 0):
        took.append([0.0, 0.0])
        for layer in layers:
            x = torch.ones(rows, layer.small.inputs, dtype=layer.weight.dtype)
            took[-1][0] += _seconds(PackedLinear.forward, layer, x)
            took[-1][1] += _seconds(FewRows.product, layer.small, x.float())
    packed, small = map(min, zip(*took, strict=True)) if took else (0.0, 1.0)
    if small <= ALIKE * packed:
        for layer in layers:
            layer.release()


def _seconds(work: Any, *given: Any) -> float:
    """Return what a call takes."""
    begin = time.perf_counter()
    work(*given)
    return time.perf_counter() - begin


def rounded(weight: Tensor, blocks: Any, head: bool) -> Lanes | Rows:
    """Return a weight (outputs, inputs) in 4 bits; in 8 where 4 do not fit it.

    blocks, where there are some, are the whole numbers it is made of, still in their file: 4-bit
    ones are taken as they are, others and heads become 8 bits.
    """
    outputs, inputs = weight.shape
    odd = outputs % LANES or inputs % GROUP
    if odd or (head if blocks is None else blocks.bits != 4):
        return eight_bits(weight)
    return four_bits(weight) if blocks is None else lanes(*blocks.read())


def eight_bits(weight: Tensor) -> Rows:
    """Return a weight (outputs, inputs) rounded to 8 bits."""
    q = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight))
    step = max(1, CHUNK // weight.shape[1])
    for first in range(0, len(weight), step):
        some = weight[first : first + step].float()
        scale = some.abs().amax(1).clamp_min(1e-12) / 127
        q[first : first + step] = (some / scale[:, None]).round().to(torch.int8)
        scales[first : first + step] = scale
    return Rows(q, scales)


def four_bits(weight: Tensor) -> Lanes:
    """Return a weight (outputs, inputs) rounded to 4 bits between every group's least and most."""
    some = weight.float().unflatten(1, (-1, GROUP))
    least, most = some.amin(2), some.amax(2)
    scale, offset = ((x.half().float()) for x in ((most - least) / 15, least))
    q = ((some - offset[..., None]) / scale.clamp_min(1e-12)[..., None]).round().clamp(0, 15)
    return lanes(q.to(torch.int8).flatten(1), scale, offset)


def lanes(q: Tensor, scale: Tensor, offset: Tensor | None) -> Lanes:
    """Return whole numbers (outputs, inputs) int8, scales and offsets (outputs, groups) in lanes.

    Without offsets the numbers are from -8 to 7, else from 0 to 15.
    """
    if offset is None:
        q, offset = q + 8, -8 * scale
    blocks = len(q) // LANES, LANES, -1
    q = q.view(torch.uint8).view(*blocks, 2, GROUP // 2)  # (blocks, LANES, groups, halves, 16)
    q = (q[..., 0, :] | (q[..., 1, :] << 4)).permute(0, 2, 3, 1).contiguous()
    both = torch.stack([scale.view(blocks), offset.view(blocks)], -1)
    return Lanes(q, both.permute(0, 2, 3, 1).half().contiguous())

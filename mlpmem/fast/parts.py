"""Weights as compiled code reads them: by address, in one of four forms; products of one weight.

It keeps every tensor whose address it uses. Helpers are threads of the process.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mlpmem.fast.few_rows import LANES, FewRows, Lanes, Rows
from mlpmem.fast.kernels.intrinsics import GROUP
from mlpmem.fast.kernels.products import FLOAT16, FLOAT32, INT4, INT8, some_outputs, sum_groups

CHUNK = 2**15  # bytes of weights that a thread takes at once
SHARED = 2**14  # outputs that are worth a second thread
COPIED = 2**26  # bytes of a float32 weight that may be copied in float16, at most
POOL = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), "decode")


class Part(NamedTuple):
    """One weight of a product; the outputs of a product's parts are concatenated."""

    kind: int
    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    outputs: int
    module: nn.Module
    source: tuple[int, int] = (0, 0)  # of a plain weight, as it was read

    @property
    def is_current(self) -> bool:
        """Return whether the weight is still the one that was read."""
        return self.source == (0, 0) or self.source == source_of(self.module.weight)

    def row(self, column: int) -> list[int]:
        """Return the kernels' description of the part; `column` is the first output."""
        addresses = [0 if x is None else x.data_ptr() for x in (self.scale, self.bias)]
        return [self.kind, self.weight.data_ptr(), *addresses, self.outputs, column]

    def chunk(self) -> int:
        """Return the number of outputs per chunk."""
        size = self.weight.nbytes // self.outputs
        return max(LANES, CHUNK // max(1, size) // LANES * LANES)


def part_of(module: nn.Module) -> Part | None:
    """Return the part of a linear layer, None if a step cannot read its form.

    A float32 weight whose numbers are all float16 is read from a copy in float16, which takes half
    the time.
    """
    bias = module.bias
    bias = None if bias is None else bias.detach().float().contiguous()
    if isinstance(module, FewRows):
        kind = INT4 if isinstance(module.small, Lanes) else INT8
        rows = len(module.small.q) * (LANES if kind == INT4 else 1)
        return Part(kind, *module.small, bias, rows, module)
    if type(module) is not nn.Linear or module.weight.dtype != torch.float32:
        return None
    weight = module.weight.detach()
    if not weight.is_contiguous():
        return None
    kind, source = FLOAT32, source_of(module.weight)
    half = weight.half() if weight.nbytes <= COPIED and not module.weight.requires_grad else None
    if half is not None and torch.equal(half.float(), weight):
        kind, weight = FLOAT16, half
    return Part(kind, weight, None, bias, len(weight), module, source)


def source_of(weight: Tensor) -> tuple[int, int]:
    """Return what changes if a weight is replaced or written to."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def product(small: Lanes | Rows, x: Tensor) -> Tensor:
    """Return x (R, inputs) float32 @ weight.T of a small form: (R, outputs) float32."""
    x = x.contiguous()
    lanes = isinstance(small, Lanes)
    outputs = len(small.q) * (LANES if lanes else 1)
    out, inputs = torch.empty(len(x), outputs), x.numpy()
    sums = np.empty(len(x) * (x.shape[1] // GROUP), np.float32)
    part = np.array([INT4 if lanes else INT8, *(y.data_ptr() for y in small), 0, outputs, 0])
    if lanes:
        sum_groups(inputs, sums)
    threads = torch.get_num_threads()
    size = -(-outputs // threads // LANES) * LANES if outputs * len(x) > SHARED else outputs
    spans = [(i, min(outputs, i + size)) for i in range(0, outputs, size)]
    rest = inputs, sums, out.numpy()
    helpers = [POOL.submit(some_outputs, part, *span, *rest) for span in spans[1:]]
    some_outputs(part, *spans[0], *rest)
    for helper in helpers:
        helper.result()
    return out

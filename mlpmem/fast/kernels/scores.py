"""Log-probs of given tokens without a distribution: a head's outputs are read and dropped.

A chunk of outputs leaves the logarithm of the sum of its exponentials per row, and the outputs that
were asked for. An 8-bit weight is widened to float32 once for all rows of a chunk.
"""

import numpy as np
from numba import carray

from mlpmem.fast.kernels import compiled
from mlpmem.fast.kernels.intrinsics import pointer
from mlpmem.fast.kernels.layer import ZERO, exp
from mlpmem.fast.kernels.products import FLOAT32, INT8, some_outputs


@compiled
def score_chunk(part, begin, end, x, sums, tokens, totals, found):
    """Read outputs begin .. end - 1 of a part for rows x (R, D).

    totals (R,) = the logarithm of the sum of their exponentials; found (R,) = the output of a
    row's token, where that is one of them. part is that of `some_outputs`.
    """
    (rows, width), count = x.shape, end - begin
    moved = part.copy()  # its first output is number 0 of `out`
    moved[5] = -begin
    wide = np.empty((count if part[0] == INT8 else 0, width), np.float32)
    if part[0] == INT8:
        widen_rows(part[1] + begin * width, part[2] + 4 * begin, wide)
        moved[0], moved[1] = FLOAT32, wide.ctypes.data - 4 * begin * width
    out = np.empty((rows, count), np.float32)
    some_outputs(moved, begin, end, x, sums, out)
    for row in range(rows):
        line = out[row]
        most = line[0]
        for i in range(1, count):
            most = max(most, line[i])
        total = ZERO
        for i in range(count):
            total += exp(line[i] - most)
        totals[row] = most + np.log(total)
        if begin <= tokens[row] < end:
            found[row] = line[tokens[row] - begin]


@compiled
def widen_rows(weight, scale, out):
    """out (R, D) float32 = 8-bit rows times their scales, both by address."""
    weights = carray(pointer(weight), out.shape, np.int8)
    scales = carray(pointer(scale), (len(out),), np.float32)
    for i in range(len(out)):
        for j in range(out.shape[1]):
            out[i, j] = np.float32(weights[i, j]) * scales[i]

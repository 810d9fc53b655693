"""Log-probs of given tokens without a distribution: a head's outputs are read and dropped.

A chunk of outputs leaves the logarithm of the sum of its exponentials per row, and the outputs that
were asked for. Rows lie side by side here (columns.py); an 8-bit weight is widened to float32 once
for all rows.
"""

import numpy as np
from numba import carray

from mlpmem.fast.kernels import compiled
from mlpmem.fast.kernels.columns import OUTPUTS, ROWS, half_line, half_tile, line, tile
from mlpmem.fast.kernels.intrinsics import pointer
from mlpmem.fast.kernels.layer import ZERO, exp
from mlpmem.fast.kernels.products import FLOAT32, INT8, some_outputs


@compiled
def score_chunk(part, begin, end, x, columns, sums, tokens, totals, found):
    """Read outputs begin .. end - 1 of a part for rows x (R, D), which columns (D, R) has, too.

    totals (R,) = the logarithm of the sum of their exponentials; found (R,) = the output of a
    row's token, where that is one of them. part is that of `some_outputs`, columns is as
    `transpose` makes it.
    """
    (rows, width), count = x.shape, end - begin
    out = np.empty((count, columns.shape[1]), np.float32)
    if part[0] == INT8:
        wide = np.empty((count, width), np.float32)
        widen(part[1] + begin * width, part[2] + 4 * begin, wide)
        multiply(wide.ctypes.data, columns, out)
    elif part[0] == FLOAT32:
        multiply(part[1] + 4 * begin * width, columns, out)
    else:
        outputs, moved = np.empty((rows, count), np.float32), part.copy()
        moved[3], moved[5] = 0, -begin  # no bias yet, and its first output is number 0
        some_outputs(moved, begin, end, x, sums, outputs)
        out[:, :rows] = outputs.T
    if part[3]:
        biases = carray(pointer(part[3]), (end,), np.float32)
        for i in range(count):
            out[i] += biases[begin + i]
    fold(out, begin, tokens[:rows], totals, found)


@compiled
def transpose(x, columns):
    """Write rows x (R, D) to columns (D, R or more), 0 behind them."""
    rows, width = x.shape
    for i in range(width):
        for row in range(rows):
            columns[i, row] = x[row, i]
        columns[i, rows:] = ZERO


@compiled
def widen(weight, scale, out):
    """out (N, D) float32 = 8-bit rows times their scales, both by address."""
    weights = carray(pointer(weight), out.shape, np.int8)
    scales = carray(pointer(scale), (len(out),), np.float32)
    for i in range(len(out)):
        for j in range(out.shape[1]):
            out[i, j] = np.float32(weights[i, j]) * scales[i]


@compiled
def multiply(weight, columns, out):
    """out (N, R) = float32 rows of a weight (N, D) by address, times columns (D, R)."""
    (width, stride), count = columns.shape, len(out)
    whole, tiles = count // OUTPUTS * OUTPUTS, stride // ROWS * ROWS
    for row in range(0, stride, ROWS):
        x, y = columns.ctypes.data + 4 * row, out.ctypes.data + 4 * row
        for i in range(0, whole, OUTPUTS):
            if row < tiles:
                tile(weight + 4 * i * width, x, y + 4 * i * stride, width, stride)
            else:
                half_tile(weight + 4 * i * width, x, y + 4 * i * stride, width, stride)
        for i in range(whole, count):
            if row < tiles:
                line(weight + 4 * i * width, x, y + 4 * i * stride, width, stride)
            else:
                half_line(weight + 4 * i * width, x, y + 4 * i * stride, width, stride)


@compiled
def fold(out, begin, tokens, totals, found):
    """Write totals and found of `score_chunk` from outputs out (N, R or more), from `begin` on."""
    rows = len(tokens)
    most, total = out[0].copy(), np.zeros(out.shape[1], np.float32)
    for i in range(1, len(out)):
        for row in range(rows):
            most[row] = max(most[row], out[i, row])
    for i in range(len(out)):
        for row in range(rows):
            total[row] += exp(out[i, row] - most[row])
    for row in range(rows):
        totals[row] = most[row] + np.log(total[row])
        if begin <= tokens[row] < begin + len(out):
            found[row] = out[tokens[row] - begin, row]

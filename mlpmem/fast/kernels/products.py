"""Some outputs of a product, for any number of rows, compiled by numba.

Weights are given by address: float32, float16 or 8 bits row by row, or 4 bits in lanes
(`few_rows.py`). Inputs and sums are always float32.
"""

import numpy as np
from numba import carray

from mlpmem.fast.kernels import compiled
from mlpmem.fast.kernels.intrinsics import (
    GROUP,
    LANES,
    LINE,
    TILE,
    float_1,
    floats_1,
    floats_2,
    floats_3,
    floats_4,
    half_1,
    halves_1,
    halves_2,
    halves_3,
    halves_4,
    int_1,
    ints_1,
    ints_2,
    ints_3,
    ints_4,
    pointer,
    prefetch,
    product_1,
    product_2,
    product_3,
    product_4,
    product_8,
)

FLOAT32, INT8, INT4, FLOAT16 = 0, 1, 2, 3  # kinds of part


@compiled(inline="always")
def tile_product(kind, weight, scale, rows, x, out, width, stride):
    """TILE outputs of a weight in rows, for at most TILE rows of x; all by address."""
    if kind == INT8:
        if rows == 1:
            ints_1(weight, scale, x, out, width, stride)
        elif rows == 2:
            ints_2(weight, scale, x, out, width, stride)
        elif rows == 3:
            ints_3(weight, scale, x, out, width, stride)
        else:
            ints_4(weight, scale, x, out, width, stride)
    elif kind == FLOAT16:
        if rows == 1:
            halves_1(weight, scale, x, out, width, stride)
        elif rows == 2:
            halves_2(weight, scale, x, out, width, stride)
        elif rows == 3:
            halves_3(weight, scale, x, out, width, stride)
        else:
            halves_4(weight, scale, x, out, width, stride)
    elif rows == 1:
        floats_1(weight, scale, x, out, width, stride)
    elif rows == 2:
        floats_2(weight, scale, x, out, width, stride)
    elif rows == 3:
        floats_3(weight, scale, x, out, width, stride)
    else:
        floats_4(weight, scale, x, out, width, stride)


@compiled
def rows_product(kind, weight, scale, begin, end, rows, x, out, width, stride):
    """Outputs begin .. end - 1 of a weight in rows; all arrays by address, out's first output 0."""
    size = width * (1 if kind == INT8 else 2 if kind == FLOAT16 else 4)
    whole = begin + (end - begin) // TILE * TILE
    for i in range(begin, whole, TILE):
        here, ahead = weight + i * size, weight + (i + 2 * TILE) * size
        for line in range(0, TILE * size, LINE):
            prefetch(ahead + line)
        for r in range(0, rows, TILE):
            inputs, outputs = x + 4 * r * width, out + 4 * (r * stride + i)
            count = min(TILE, rows - r)
            tile_product(kind, here, scale + 4 * i, count, inputs, outputs, width, stride)
    for i in range(whole, end):
        for r in range(rows):
            here, inputs = weight + i * size, x + 4 * r * width
            outputs = out + 4 * (r * stride + i)
            if kind == INT8:
                int_1(here, scale + 4 * i, inputs, outputs, width, stride)
            elif kind == FLOAT16:
                half_1(here, 0, inputs, outputs, width, stride)
            else:
                float_1(here, 0, inputs, outputs, width, stride)


@compiled(inline="always")
def lanes_product(weight, scale, rows, x, sums, out, groups, width, stride):
    """LANES outputs of a 4-bit weight for all rows, eight rows at a time; all by address."""
    left = rows
    while left > 4:  # a block's weights stay in the L1 cache
        if left < 8:  # fill the tile with earlier rows, which are computed twice
            back = min(8 - left, rows - left)
            if left + back < 8:
                break
            x, sums = x - 4 * back * width, sums - 4 * back * groups
            out, left = out - 4 * back * stride, 8
        product_8(weight, scale, x, sums, out, groups, width, stride)
        x, sums = x + 32 * width, sums + 32 * groups
        out, left = out + 32 * stride, left - 8
    if left > 4:  # five to seven rows in all
        product_4(weight, scale, x, sums, out, groups, width, stride)
        x, sums = x + 16 * width, sums + 16 * groups
        out, left = out + 16 * stride, left - 4
    if left == 1:
        product_1(weight, scale, x, sums, out, groups, width, stride)
    elif left == 2:
        product_2(weight, scale, x, sums, out, groups, width, stride)
    elif left == 3:
        product_3(weight, scale, x, sums, out, groups, width, stride)
    elif left == 4:
        product_4(weight, scale, x, sums, out, groups, width, stride)


@compiled
def some_outputs(part, begin, end, x, sums, out):
    """Outputs begin .. end - 1 of a part (kind, weight, scale, bias, outputs, column)."""
    kind, weight, scale, bias, column = part[0], part[1], part[2], part[3], part[5]
    rows, width = x.shape
    if kind == INT4:
        groups = width // GROUP
        for i in range(begin, end, LANES):
            block = i // LANES
            lanes_product(
                weight + block * groups * (GROUP * LANES // 2), scale + block * groups * 4 * LANES,
                rows, x.ctypes.data, sums.ctypes.data, out.ctypes.data + 4 * (column + i),
                groups, width, out.shape[1],
            )  # fmt: skip
    else:
        rows_product(
            kind, weight, scale, begin, end, rows, x.ctypes.data, out.ctypes.data + 4 * column,
            width, out.shape[1],
        )  # fmt: skip
    if bias:
        biases = carray(pointer(bias), (end,), np.float32)
        for r in range(rows):
            for i in range(begin, end):
                out[r, column + i] += biases[i]


@compiled
def sum_groups(x, sums):
    """sums (R, K / GROUP), flat = the sum of each group of inputs x (R, K)."""
    rows, width = x.shape
    groups = width // GROUP
    for r in range(rows):
        for g in range(groups):
            total = np.float32(0)
            for i in range(GROUP):
                total += x[r, g * GROUP + i]
            sums[r * groups + g] = total

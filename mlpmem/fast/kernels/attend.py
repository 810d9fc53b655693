"""Attention of one query per row, compiled by numba; rows that share positions read them once.

A span of positions is computed at a time, for all rows and heads that read its keys: a piece, as in
flash decoding. `merge` joins the pieces of a query, so threads can share a long context.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mlpmem.fast.kernels import compiled
from mlpmem.fast.kernels.intrinsics import (
    F32,
    I8,
    LANES,
    load,
    multiply_add,
    number,
    splat,
    vector_of,
)
from mlpmem.fast.kernels.layer import ONE, ZERO, exp, like, wide

LOWEST = np.float32(-1e30)
BLOCK = 64  # positions widened at a time: 16 KB of a head's keys, which stay in the L1 cache
GROUP = 4  # vectors of a head that are summed together


@intrinsic
def score(context, keys, query, out, width):
    """Write the dot products of a query (width,) with LANES keys (LANES, width); all by address."""

    def make(lower, builder, signature, args):
        *addresses, size = args
        keys, query, out = (builder.inttoptr(x, I8.as_pointer()) for x in addresses)
        zero = ir.Constant(vector_of(F32), [0.0] * LANES)
        totals = [cgutils.alloca_once_value(builder, zero) for _ in range(LANES)]
        for total in totals:
            builder.store(zero, total)
        with cgutils.for_range(builder, builder.udiv(size, number(LANES))) as loop:
            at = builder.mul(loop.index, number(LANES))
            x = load(builder, query, builder.mul(at, number(4)), vector_of(F32), 4)
            for key, total in enumerate(totals):
                place = builder.add(builder.mul(size, number(key)), at)
                y = load(builder, keys, builder.mul(place, number(4)), vector_of(F32), 4)
                builder.store(multiply_add(builder, x, y, builder.load(total)), total)
        sums = _row_sums(builder, [builder.load(total) for total in totals])
        builder.store(sums, builder.bitcast(out, vector_of(F32).as_pointer()), align=4)
        return lower.get_dummy_value()

    return types.void(*[types.int64] * 4), make


def _row_sums(builder: ir.IRBuilder, vectors: list[ir.Value]) -> ir.Value:
    """Return a vector whose element i is the sum of vectors[i]: pairs are added, then their pairs.

    Each round adds neighbours, so that a vector holds half as many sums of twice as many vectors.
    """
    kind = ir.VectorType(ir.IntType(32), LANES)
    even, odd = (ir.Constant(kind, list(range(first, 2 * LANES, 2))) for first in (0, 1))
    while len(vectors) > 1:
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [
            builder.fadd(builder.shuffle_vector(a, b, even), builder.shuffle_vector(a, b, odd))
            for a, b in pairs
        ]
    return vectors[0]


@intrinsic
def greatest(context, line, count):
    """Return the greatest of numbers by address, LOWEST for none; LANES at a time.

    A rest is left out. LLVM does not compute a loop of `max` in vectors.
    """

    def make(lower, builder, signature, args):
        line, kind = builder.inttoptr(args[0], I8.as_pointer()), vector_of(F32)
        lowest = ir.Constant(kind, [float(LOWEST)] * LANES)
        top = cgutils.alloca_once_value(builder, lowest)
        with cgutils.for_range(builder, builder.udiv(args[1], number(LANES))) as loop:
            x = load(builder, line, builder.mul(loop.index, number(4 * LANES)), kind, 4)
            best = builder.load(top)
            builder.store(builder.select(builder.fcmp_ordered(">", x, best), x, best), top)
        name = f"llvm.vector.reduce.fmax.v{LANES}f32"
        function = ir.FunctionType(F32, [kind])
        reduce = cgutils.get_or_insert_function(builder.module, function, name)
        return builder.call(reduce, [builder.load(top)], fastmath=("nnan",))

    return types.float32(types.int64, types.int64), make


@intrinsic
def weigh(context, shares, values, count, out, width):
    """Add the sum of shares (count,) times values (count, width) to out (width,); by address."""

    def make(lower, builder, signature, args):
        shares, values, count, out, width = args
        _weigh_all(builder, [(shares, out)], values, count, width)
        return lower.get_dummy_value()

    return types.void(*[types.int64] * 5), make


@intrinsic
def weigh_pair(context, shares, others, values, count, out, another, width):
    """`weigh` for two queries, which reads the values once: of others into another, too."""

    def make(lower, builder, signature, args):
        shares, others, values, count, out, another, width = args
        _weigh_all(builder, [(shares, out), (others, another)], values, count, width)
        return lower.get_dummy_value()

    return types.void(*[types.int64] * 7), make


def _weigh_all(
    builder: ir.IRBuilder, queries: list[tuple], values: ir.Value, count: ir.Value, width: ir.Value
) -> None:
    """Add up all columns of values (count, width); queries are addresses of (shares, out)."""
    values = builder.inttoptr(values, I8.as_pointer())
    queries = [tuple(builder.inttoptr(x, I8.as_pointer()) for x in query) for query in queries]
    vectors = builder.udiv(width, number(LANES))
    groups = builder.udiv(vectors, number(GROUP))
    with cgutils.for_range(builder, groups) as loop:
        first = builder.mul(loop.index, number(GROUP * LANES))
        _weigh(builder, queries, values, (count, width, first), GROUP)
    rest = builder.mul(groups, number(GROUP))
    with cgutils.for_range(builder, vectors, start=rest) as loop:
        first = builder.mul(loop.index, number(LANES))
        _weigh(builder, queries, values, (count, width, first), 1)


def _weigh(
    builder: ir.IRBuilder, queries: list[tuple], values: ir.Value, shape: tuple, vectors: int
) -> None:
    """Add up so many vectors of all values, from column `first` on; shape is (count, width, first).

    The sums stay in registers until all values are read.
    """
    (count, width, first), kind = shape, vector_of(F32)
    columns = [builder.add(first, number(LANES * i)) for i in range(vectors)]
    offsets = [builder.mul(column, number(4)) for column in columns]
    zero = ir.Constant(kind, [0.0] * LANES)
    totals = [[cgutils.alloca_once_value(builder, zero) for _ in columns] for _ in queries]
    for (_, out), sums in zip(queries, totals, strict=True):
        for total, offset in zip(sums, offsets, strict=True):
            builder.store(load(builder, out, offset, kind, 4), total)
    with cgutils.for_range(builder, count) as loop:
        row = builder.mul(loop.index, width)
        places = [builder.mul(builder.add(row, column), number(4)) for column in columns]
        read = [load(builder, values, place, kind, 4) for place in places]
        for (shares, _), sums in zip(queries, totals, strict=True):
            share = load(builder, shares, builder.mul(loop.index, number(4)), F32, 4)
            share = splat(builder, share)
            for total, value in zip(sums, read, strict=True):
                builder.store(multiply_add(builder, share, value, builder.load(total)), total)
    for (_, out), sums in zip(queries, totals, strict=True):
        for total, offset in zip(sums, offsets, strict=True):
            place = builder.bitcast(builder.gep(out, [offset]), kind.as_pointer())
            builder.store(builder.load(total), place, align=4)


@compiled(inline="always")
def padded(size):
    """Return the least multiple of LANES from a head's size on."""
    return -(-size // LANES) * LANES


@compiled
def widen(source, first, count, wider):
    """Copy positions first .. first + count - 1 of source (room, D) to wider, in float32."""
    size = source.shape[1]
    for t in range(count):
        row, widened = source[first + t], wider[t]
        for i in range(size):
            widened[i] = wide(row[i])


@compiled
def attend_piece(q, keys, values, g, begin, end, shared, scale, cap, piece):
    """Attention of all queries q (B, H, D) of key head g over positions begin .. end - 1.

    keys and values are (B, KV, room, D). piece (B, H, padded D + 2) gets sums of values with
    unnormalised shares, then the sum of shares and the top score. A `cap` other than 0 bounds the
    scores. Positions below `shared` are equal in all rows; they are widened once, from row 0.
    """
    batch, size, heads = q.shape[0], q.shape[2], q.shape[1] // keys.shape[1]
    width, count = padded(size), end - begin
    queries = np.zeros((batch * heads, width), np.float32)
    scores = np.empty((batch * heads, count + LANES), np.float32)
    wider = np.zeros((BLOCK, width), np.float32)
    for b in range(batch):
        for h in range(heads):
            for i in range(size):
                queries[b * heads + h, i] = wide(q[b, g * heads + h, i]) * scale
    start = begin
    while start < end:
        length = min(BLOCK, (shared if start < shared else end) - start, end - start)
        for b in range(1 if start < shared else batch):
            widen(keys[b, g], start, length, wider)
            first, last = b * heads, batch * heads if start < shared else (b + 1) * heads
            for n in range(first, last):
                for t in range(0, length, LANES):
                    score(
                        wider.ctypes.data + 4 * t * width, queries.ctypes.data + 4 * n * width,
                        scores.ctypes.data + 4 * (n * scores.shape[1] + start - begin + t), width,
                    )  # fmt: skip
        start += length
    for b in range(batch):
        for h in range(heads):
            result = piece[b, g * heads + h]
            top, total = soften(scores[b * heads + h, :count], cap)
            result[:width] = ZERO
            result[width], result[width + 1] = total, top
    start = begin
    while start < end:
        length = min(BLOCK, (shared if start < shared else end) - start, end - start)
        for b in range(1 if start < shared else batch):
            widen(values[b, g], start, length, wider)
            first, last = b * heads, batch * heads if start < shared else (b + 1) * heads
            for n in range(first, last, 2):
                shares = scores.ctypes.data + 4 * (n * scores.shape[1] + start - begin)
                out = piece[n // heads, g * heads + n % heads].ctypes.data
                if n + 1 == last:
                    weigh(shares, wider.ctypes.data, length, out, width)
                else:
                    another = piece[(n + 1) // heads, g * heads + (n + 1) % heads].ctypes.data
                    weigh_pair(
                        shares, shares + 4 * scores.shape[1], wider.ctypes.data, length,
                        out, another, width,
                    )  # fmt: skip
        start += length


@compiled
def soften(line, cap):
    """Replace scores (T,), bounded by `cap` if it is not 0, by exp(score - top).

    Return the top score and the sum.
    """
    total = ZERO
    if cap != ZERO:
        for t in range(len(line)):
            power = exp(line[t] / cap * np.float32(2))
            line[t] = cap * (power - ONE) / (power + ONE)
    whole = len(line) // LANES * LANES
    top = greatest(line.ctypes.data, len(line))
    for t in range(whole, len(line)):
        top = max(top, line[t])
    for t in range(len(line)):
        line[t] = exp(line[t] - top)
        total += line[t]
    return top, total


@compiled
def merge(pieces, size, out):
    """out (B, H D) = the attention of pieces (P, B, H, padded D + 2); some may have no position."""
    count, batch, heads, width = pieces.shape
    width -= 2
    for b in range(batch):
        for h in range(heads):
            top, total = LOWEST, ZERO
            for p in range(count):
                top = max(top, pieces[p, b, h, width + 1])
            first = pieces[0, b, h]
            for p in range(count):
                piece = pieces[p, b, h]
                share = exp(piece[width + 1] - top)
                total += share * piece[width]
                if p == 0:
                    for i in range(size):
                        first[i] *= share
                else:
                    for i in range(size):
                        first[i] += share * piece[i]
            for i in range(size):
                out[b, h * size + i] = like(first[i] / total, out)


@compiled
def attend(q, keys, values, first, last, scale, cap, out):
    """out (B, H D) = attention of one query per row (B, H, D) over positions first .. last - 1."""
    batch, heads, size = q.shape
    pieces = np.empty((1, batch, heads, padded(size) + 2), np.float32)
    for g in range(keys.shape[1]):
        attend_piece(q, keys, values, g, first, last, 0, scale, cap, pieces[0])
    merge(pieces, size, out)

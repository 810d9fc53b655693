"""A whole decoding step of a Llama in one compiled call, by one thread or several, without the GIL.

Weights come by address: float32 or 8 bits row by row, or 4 bits in lanes (`few_rows.py`); inputs
and sums are float32 whatever the weights are. A step is a row of phases, a product or an attention
each. A phase is cut into chunks that threads take as they come, so a thread that the machine holds
up delays its own chunk at most; what lies between phases is the first thread's.
"""

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from mlpmem.fast.llama_kernels import JIT, add_norm, attend_heads, gate, rotate

LANES, GROUP = 16, 32  # outputs side by side; inputs that share a scale
FLOAT32, INT8, INT4 = 0, 1, 2  # kinds of part
PHASES = 5  # of a layer: queries, keys and values; attention; its output; gate and up; down
LINE, AHEAD = 64, 4096  # bytes of a cache line, and how far ahead weights are asked for
SHIFT = 32  # of the phase's number in the word that threads share
WAIT, END = 2**29, 2**30  # before the first phase and behind the last

I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
F32 = ir.FloatType()


def _vector(kind: ir.Type) -> ir.VectorType:
    """Return a type of LANES numbers."""
    return ir.VectorType(kind, LANES)


def _splat(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return a float32 in every lane."""
    empty = ir.Constant(_vector(F32), ir.Undefined)
    one = builder.insert_element(empty, x, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, empty, ir.Constant(_vector(I32), [0] * LANES))


def _add(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """Return x * y + z, rounded once where the processor can."""
    flags = ("contract",)
    return builder.fadd(builder.fmul(x, y, flags=flags), z, flags=flags)


def _prefetch(builder: ir.IRBuilder, place: ir.Value) -> None:
    """Ask for the cache line at a place, which may lie behind all that is held."""
    kind = ir.FunctionType(ir.VoidType(), [place.type, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [place, *(ir.Constant(I32, x) for x in (0, 3, 1))])  # to read, to keep


@intrinsic
def prefetch(context, address):
    """Ask for the cache line at an address."""

    def make(lower, builder, signature, args):
        _prefetch(builder, builder.inttoptr(args[0], ir.IntType(8).as_pointer()))
        return lower.get_dummy_value()

    return types.void(types.int64), make


def _lanes_product(rows: int):
    """Return an intrinsic: LANES outputs of `rows` inputs, all given by address.

    weights: of every group GROUP / 2 vectors of bytes, input j in the low and j + 16 in the high
    half of byte j; scales: of every group LANES scales and LANES offsets, float16; sums (rows,
    groups): of the inputs of every group.
    """
    chains = max(1, 4 // rows)  # sums that do not wait for each other

    @intrinsic
    def product(context, weights, scales, x, sums, out, groups, width, stride):
        def make(lower, builder, signature, args):
            *addresses, groups, width, stride = args
            weights, scales, x, sums, out = (
                builder.inttoptr(address, ir.IntType(8).as_pointer()) for address in addresses
            )

            def load(base, offset, kind, align):
                place = builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())
                return builder.load(place, align=align)

            def number(value):
                return ir.Constant(I64, value)

            zero = ir.Constant(_vector(F32), [0.0] * LANES)
            totals = [cgutils.alloca_once_value(builder, zero) for _ in range(rows)]
            with cgutils.for_range(builder, groups) as loop:
                group = loop.index
                begin = builder.mul(group, number(GROUP * LANES // 2))
                found = [[zero] * (2 * chains) for _ in range(rows)]
                inputs = [
                    builder.gep(
                        x,
                        [
                            builder.mul(
                                builder.add(
                                    builder.mul(number(row), width),
                                    builder.mul(group, number(GROUP)),
                                ),
                                number(4),
                            )
                        ],
                    )
                    for row in range(rows)
                ]
                for line in range(GROUP * LANES // 2 // LINE):
                    ahead = builder.add(begin, number(AHEAD + LINE * line))
                    _prefetch(builder, builder.gep(weights, [ahead]))
                ahead = builder.mul(group, number(4 * LANES))
                _prefetch(builder, builder.gep(scales, [builder.add(ahead, number(AHEAD // 4))]))
                for j in range(GROUP // 2):
                    place = builder.add(begin, number(LANES * j))
                    both = load(weights, place, _vector(ir.IntType(8)), LANES)
                    both = builder.zext(both, _vector(I32))
                    low = builder.and_(both, ir.Constant(_vector(I32), [15] * LANES))
                    high = builder.lshr(both, ir.Constant(_vector(I32), [4] * LANES))
                    halves = [builder.sitofp(half, _vector(F32)) for half in (low, high)]
                    for row in range(rows):
                        for k, half in enumerate(halves):
                            at = number(4 * (j + k * GROUP // 2))
                            given = _splat(builder, load(inputs[row], at, F32, 4))
                            chain = 2 * (j % chains) + k
                            found[row][chain] = _add(builder, given, half, found[row][chain])
                begin = builder.mul(group, number(4 * LANES))
                half = _vector(ir.HalfType())
                scale = builder.fpext(load(scales, begin, half, 32), _vector(F32))
                begin = builder.add(begin, number(2 * LANES))
                offset = builder.fpext(load(scales, begin, half, 32), _vector(F32))
                for row in range(rows):
                    total = found[row][0]
                    for part in found[row][1:]:
                        total = builder.fadd(total, part)
                    at = builder.add(builder.mul(number(row), groups), group)
                    summed = load(sums, builder.mul(at, number(4)), F32, 4)
                    total = _add(builder, scale, total, builder.load(totals[row]))
                    total = _add(builder, offset, _splat(builder, summed), total)
                    builder.store(total, totals[row])
            for row in range(rows):
                at = builder.mul(builder.mul(number(row), stride), number(4))
                place = builder.bitcast(builder.gep(out, [at]), _vector(F32).as_pointer())
                builder.store(builder.load(totals[row]), place, align=4)
            return lower.get_dummy_value()

        return types.void(*[types.int64] * 8), make

    return product


product_1, product_2, product_3, product_4 = (_lanes_product(rows) for rows in range(1, 5))
product_8 = _lanes_product(8)


@intrinsic
def pointer(context, address):
    """Return an address as a pointer."""

    def make(lower, builder, signature, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), make


def _place(lower, builder, array_type, array, index):
    """Return a pointer to a number of an int64 array."""
    made = lower.make_array(array_type)(lower, builder, array)
    return builder.gep(made.data, [index])


@intrinsic
def read(context, array, index):
    """Return array[index] as other threads last wrote it."""

    def make(lower, builder, signature, args):
        place = _place(lower, builder, signature.args[0], *args)
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(array, types.intp), make


@intrinsic
def write(context, array, index, value):
    """Set array[index] for other threads, behind all that was written before."""

    def make(lower, builder, signature, args):
        array, index, value = args
        place = _place(lower, builder, signature.args[0], array, index)
        builder.store_atomic(value, place, "release", 8)
        return lower.get_dummy_value()

    return types.void(array, types.intp, types.int64), make


@intrinsic
def add(context, array, index, value):
    """Add to array[index] at once."""

    def make(lower, builder, signature, args):
        array, index, value = args
        place = _place(lower, builder, signature.args[0], array, index)
        return builder.atomic_rmw("add", place, value, "acq_rel")

    return types.int64(array, types.intp, types.int64), make


@intrinsic
def swap(context, array, index, old, new):
    """Set array[index] to new if it is old; return whether it was."""

    def make(lower, builder, signature, args):
        array, index, old, new = args
        place = _place(lower, builder, signature.args[0], array, index)
        found = builder.cmpxchg(place, old, new, "acq_rel", "acquire")
        return builder.extract_value(found, 1)

    return types.boolean(array, types.intp, types.int64, types.int64), make


@njit(inline="always", **JIT)
def rows_of(address, scale, begin, end, x, out, column, sample):
    """Outputs begin .. end - 1 of a weight row by row, the rows' scales at an address or at 0."""
    width = x.shape[1]
    weight = carray(pointer(address), (end, width), sample.dtype)
    scales = carray(pointer(scale), (end,), np.float32)
    for r in range(x.shape[0]):
        given = x[r]
        i, size = begin, 4 * width * weight.itemsize
        while i + 4 <= end:
            ahead = address + (i + 8) * width * weight.itemsize
            for line in range(0, size, LINE):
                prefetch(ahead + line)
            w0, w1, w2, w3 = weight[i], weight[i + 1], weight[i + 2], weight[i + 3]
            t0, t1, t2, t3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for k in range(width):
                t0 += given[k] * np.float32(w0[k])
                t1 += given[k] * np.float32(w1[k])
                t2 += given[k] * np.float32(w2[k])
                t3 += given[k] * np.float32(w3[k])
            if scale:
                t0, t1 = t0 * scales[i], t1 * scales[i + 1]
                t2, t3 = t2 * scales[i + 2], t3 * scales[i + 3]
            out[r, column + i], out[r, column + i + 1] = t0, t1
            out[r, column + i + 2], out[r, column + i + 3] = t2, t3
            i += 4
        while i < end:
            w0, t0 = weight[i], np.float32(0)
            for k in range(width):
                t0 += given[k] * np.float32(w0[k])
            out[r, column + i] = t0 * scales[i] if scale else t0
            i += 1


@njit(**JIT)
def some_outputs(part, begin, end, x, sums, out, bytes_sample):
    """Outputs begin .. end - 1 of a part (kind, weight, scale, bias, outputs, column)."""
    kind, weight, scale, bias, column = part[0], part[1], part[2], part[3], part[5]
    rows, width = x.shape
    if kind == INT4:
        groups = width // GROUP
        for i in range(begin, end, LANES):
            block = i // LANES
            w = weight + block * groups * (GROUP * LANES // 2)
            s = scale + block * groups * 4 * LANES
            to = out.ctypes.data + 4 * (column + i)
            stride = out.shape[1]
            given, summed = x.ctypes.data, sums.ctypes.data
            left = rows
            while left > 4:  # the weights of a block stay in the nearest cache
                if left < 8:  # the rows before are computed again, for a whole tile
                    back = min(8 - left, rows - left)
                    if left + back < 8:
                        break
                    given, summed = given - 4 * back * width, summed - 4 * back * groups
                    to, left = to - 4 * back * stride, 8
                product_8(w, s, given, summed, to, groups, width, stride)
                given, summed = given + 32 * width, summed + 32 * groups
                to, left = to + 32 * stride, left - 8
            if left > 4:  # five to seven rows alone
                product_4(w, s, given, summed, to, groups, width, stride)
                given, summed = given + 16 * width, summed + 16 * groups
                to, left = to + 16 * stride, left - 4
            if left == 1:
                product_1(w, s, given, summed, to, groups, width, stride)
            elif left == 2:
                product_2(w, s, given, summed, to, groups, width, stride)
            elif left == 3:
                product_3(w, s, given, summed, to, groups, width, stride)
            elif left == 4:
                product_4(w, s, given, summed, to, groups, width, stride)
    elif kind == INT8:
        rows_of(weight, scale, begin, end, x, out, column, bytes_sample)
    else:
        rows_of(weight, 0, begin, end, x, out, column, x)
    if bias:
        more = carray(pointer(bias), (end,), np.float32)
        for r in range(rows):
            for i in range(begin, end):
                out[r, column + i] += more[i]


@njit(**JIT)
def sum_groups(x, sums):
    """sums (R, K / GROUP), flat: of every group of inputs x (R, K)."""
    rows, width = x.shape
    groups = width // GROUP
    for r in range(rows):
        for g in range(groups):
            total = np.float32(0)
            for i in range(GROUP):
                total += x[r, g * GROUP + i]
            sums[r * groups + g] = total


@njit(**JIT)
def vector(address, size):
    """Return float32 numbers at an address; none at 0."""
    return carray(pointer(address), (size if address else 0,), np.float32)


@njit(**JIT)
def step(
    leads, word, done, first, chunks, parts, room, caches, windows, scores, past, sample,
    norms, tables, factors, gelu, depth, x, hidden,
):  # fmt: skip
    """One token a row: x (B, D) are its embeddings; hidden (B, D) and room's logits are written.

    One thread leads: it computes what lies before a phase and opens it. All take its chunks, the
    leader waits until the last is done. norms (layers + 1, 6): addresses of the norms before and
    behind attention, before and behind the FFN, of queries and of keys. tables (layers, 3): cos,
    sin, and how wide they are. factors: what is added to norms' weights, and their epsilons.
    """
    (h, q, qkv, attended, both, bent, delta, logits, sums) = room
    phases, layers, (batch, width) = len(first) - 1, len(windows), x.shape
    size, one, kv_heads = q.shape[2], factors[0], caches[0, 3]
    phase = 0
    while True:
        layer, kind = phase // PHASES, phase % PHASES
        if leads:
            if phase == phases:
                write(word, 0, END << SHIFT)
                return
            given = h
            if kind == 0:  # and the head, behind the last layer
                names, before = norms[layer], norms[max(0, layer - 1)]
                after = vector(before[3] if layer else 0, width)
                added = delta if layer else delta[:0]
                add_norm(x, added, after, vector(names[0], width), factors[1], one, h)
            elif kind == 1:
                half = tables[layer, 2]
                cos = carray(pointer(tables[layer, 0]), (past + 1, half), np.float32)
                sin = carray(pointer(tables[layer, 1]), (past + 1, half), np.float32)
                shape = batch, kv_heads, caches[layer, 2], size
                keys = carray(pointer(caches[layer, 0]), shape, sample.dtype)
                values = carray(pointer(caches[layer, 1]), shape, sample.dtype)
                names = norms[layer]
                rotate(
                    qkv.reshape(batch, 1, qkv.shape[1]), vector(names[4], size),
                    vector(names[5], size), factors[2], one, cos, sin, past,
                    q.reshape(batch, 1, q.shape[1], size), keys, values,
                )  # fmt: skip
            elif kind == 2:
                given = attended
            elif kind == 3:
                names = norms[layer]
                after, inner = vector(names[1], width), vector(names[2], width)
                add_norm(x, delta, after, inner, factors[1], one, h)
                if layer == depth:
                    hidden[:] = h
            else:
                gate(both, gelu, bent)
                given = bent
            if kind != 1:
                sum_groups(given, sums)
            write(word, 0, phase << SHIFT)
        while True:
            held = read(word, 0)
            on, chunk = held >> SHIFT, held & (2**SHIFT - 1)
            if on >= phases or chunk >= first[on + 1] - first[on]:
                break
            if not swap(word, 0, held, held + 1):
                continue
            index, begin, end = chunks[first[on] + chunk]
            layer, kind = on // PHASES, on % PHASES
            if kind == 1:
                shape = batch, kv_heads, caches[layer, 2], size
                keys = carray(pointer(caches[layer, 0]), shape, sample.dtype)
                values = carray(pointer(caches[layer, 1]), shape, sample.dtype)
                window = windows[layer]
                least = max(0, past + 1 - window) if window else 0
                for i in range(begin, end):
                    scale, cap, b = scores[layer, 0], scores[layer, 1], i // kv_heads
                    attend_heads(
                        q, keys, values, b, i % kv_heads, least, past + 1, scale, cap, attended
                    )
            else:
                given, out = h, qkv
                if layer == layers:
                    out = logits
                elif kind == 2:
                    given, out = attended, delta
                elif kind == 3:
                    out = both
                elif kind == 4:
                    given, out = bent, delta
                some_outputs(parts[index], begin, end, given, sums, out, EIGHT)
            add(done, on, 1)
        if leads:
            while read(done, phase) < first[phase + 1] - first[phase]:
                pass
            phase += 1
        elif on == END:
            return


EIGHT = np.zeros(0, np.int8)

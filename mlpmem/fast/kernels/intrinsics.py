"""LLVM code that numba cannot express: products over vectors, prefetch, and atomics.

Compiled code (step.py) calls these intrinsics. `few_rows.Lanes` describes a weight in lanes.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES, GROUP = 16, 32  # outputs side by side; inputs that share a scale
TILE = 4  # outputs of a weight in rows that are computed together
LINE, AHEAD = 64, 4096  # bytes of a cache line, and how far ahead weights are prefetched

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
F16, F32 = ir.HalfType(), ir.FloatType()


def vector_of(kind: ir.Type) -> ir.VectorType:
    """Return the type of LANES numbers."""
    return ir.VectorType(kind, LANES)


def number(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def splat(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return a float32 repeated in every lane."""
    empty = ir.Constant(vector_of(F32), ir.Undefined)
    one = builder.insert_element(empty, x, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, empty, ir.Constant(vector_of(I32), [0] * LANES))


def multiply_add(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """Return x * y + z, rounded once if the processor can."""
    flags = ("contract",)
    return builder.fadd(builder.fmul(x, y, flags=flags), z, flags=flags)


def load(
    builder: ir.IRBuilder, base: ir.Value, offset: ir.Value, kind: ir.Type, align: int
) -> ir.Value:
    """Return a value of a type at base + offset bytes."""
    address = builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())
    return builder.load(address, align=align)


def _prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Prefetch the cache line at an address, which may lie outside the array."""
    kind = ir.FunctionType(ir.VoidType(), [address.type, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read_and_keep = (ir.Constant(I32, x) for x in (0, 3, 1))
    builder.call(function, [address, *read_and_keep])


@intrinsic
def prefetch(context, address):
    """Prefetch the cache line at an address."""

    def make(lower, builder, signature, args):
        _prefetch(builder, builder.inttoptr(args[0], I8.as_pointer()))
        return lower.get_dummy_value()

    return types.void(types.int64), make


class _LanesProduct:
    """The code of LANES outputs for `rows` inputs; one method per part of the loop over groups."""

    def __init__(self, builder: ir.IRBuilder, rows: int, args: list[ir.Value]) -> None:
        """Read the arguments of `product` and clear a total per row."""
        self.builder, self.rows = builder, rows
        *addresses, self.groups, self.width, self.stride = args
        self.weights, self.scales, self.x, self.sums, self.out = (
            builder.inttoptr(address, I8.as_pointer()) for address in addresses
        )
        self.zero = ir.Constant(vector_of(F32), [0.0] * LANES)
        self.totals = [cgutils.alloca_once_value(builder, self.zero) for _ in range(rows)]

    def emit(self) -> None:
        with cgutils.for_range(self.builder, self.groups) as loop:
            group = loop.index
            inputs = [self._input(row, group) for row in range(self.rows)]
            self._prefetch_weights(group)
            self._add_group(group, self._multiply(group, inputs))
        self._store()

    def _input(self, row: int, group: ir.Value) -> ir.Value:
        """Return the address of a row's inputs of a group."""
        builder = self.builder
        begin = builder.mul(number(row), self.width)
        index = builder.add(begin, builder.mul(group, number(GROUP)))
        return builder.gep(self.x, [builder.mul(index, number(4))])

    def _prefetch_weights(self, group: ir.Value) -> None:
        """Prefetch the weights and scales that are AHEAD of a group."""
        builder = self.builder
        begin = builder.mul(group, number(GROUP * LANES // 2))
        for line in range(GROUP * LANES // 2 // LINE):
            ahead = builder.add(begin, number(AHEAD + LINE * line))
            _prefetch(builder, builder.gep(self.weights, [ahead]))
        begin = builder.mul(group, number(4 * LANES))
        ahead = builder.add(begin, number(AHEAD // 4))
        _prefetch(builder, builder.gep(self.scales, [ahead]))

    def _multiply(self, group: ir.Value, inputs: list[ir.Value]) -> list[list[ir.Value]]:
        """Return each row's partial sums of input * q over a group.

        A row has several chains of sums, so that additions do not wait for each other.
        """
        builder, chains = self.builder, max(1, 4 // self.rows)
        begin = builder.mul(group, number(GROUP * LANES // 2))
        partial = [[self.zero] * (2 * chains) for _ in range(self.rows)]
        for j in range(GROUP // 2):
            offset = builder.add(begin, number(LANES * j))
            packed = load(builder, self.weights, offset, vector_of(I8), LANES)
            packed = builder.zext(packed, vector_of(I32))
            low = builder.and_(packed, ir.Constant(vector_of(I32), [15] * LANES))
            high = builder.lshr(packed, ir.Constant(vector_of(I32), [4] * LANES))
            halves = [builder.sitofp(half, vector_of(F32)) for half in (low, high)]
            for row in range(self.rows):
                for k, half in enumerate(halves):
                    at = number(4 * (j + k * GROUP // 2))
                    x = splat(builder, load(builder, inputs[row], at, F32, 4))
                    chain = 2 * (j % chains) + k
                    partial[row][chain] = multiply_add(builder, x, half, partial[row][chain])
        return partial

    def _add_group(self, group: ir.Value, partial: list[list[ir.Value]]) -> None:
        """Add scale * (sum of input * q) + offset * (sum of inputs) to each row's total."""
        builder = self.builder
        begin = builder.mul(group, number(4 * LANES))
        scale = load(builder, self.scales, begin, vector_of(F16), 32)
        scale = builder.fpext(scale, vector_of(F32))
        begin = builder.add(begin, number(2 * LANES))
        offset = load(builder, self.scales, begin, vector_of(F16), 32)
        offset = builder.fpext(offset, vector_of(F32))
        for row in range(self.rows):
            total = partial[row][0]
            for part in partial[row][1:]:
                total = builder.fadd(total, part)
            at = builder.add(builder.mul(number(row), self.groups), group)
            inputs = load(builder, self.sums, builder.mul(at, number(4)), F32, 4)
            total = multiply_add(builder, scale, total, builder.load(self.totals[row]))
            total = multiply_add(builder, offset, splat(builder, inputs), total)
            builder.store(total, self.totals[row])

    def _store(self) -> None:
        """Write each row's total to the outputs."""
        builder = self.builder
        for row in range(self.rows):
            at = builder.mul(builder.mul(number(row), self.stride), number(4))
            address = builder.bitcast(builder.gep(self.out, [at]), vector_of(F32).as_pointer())
            builder.store(builder.load(self.totals[row]), address, align=4)


def _lanes_product(rows: int):
    """Return an intrinsic that computes LANES outputs for `rows` inputs, all given by address.

    weights has GROUP / 2 vectors of bytes per group, with input j in the low and j + 16 in the high
    half of byte j. scales has LANES scales and LANES offsets per group, float16. sums (rows,
    groups) has the sum of the inputs of each group. width and stride count the numbers between rows
    of x and out.
    """

    @intrinsic
    def product(context, weights, scales, x, sums, out, groups, width, stride):
        def make(lower, builder, signature, args):
            _LanesProduct(builder, rows, args).emit()
            return lower.get_dummy_value()

        return types.void(*[types.int64] * 8), make

    return product


product_1, product_2, product_3, product_4 = (_lanes_product(rows) for rows in range(1, 5))
product_8 = _lanes_product(8)


class _RowsProduct:
    """The code of `outputs` dot products with each of `rows` inputs: rows of a weight of a kind."""

    def __init__(self, builder: ir.IRBuilder, shape: tuple, args: list[ir.Value]) -> None:
        """Read shape (kind, outputs, rows) and the arguments of `dots`; clear the totals."""
        self.builder, (self.kind, self.outputs, self.rows) = builder, shape
        self.size = {I8: 1, F16: 2, F32: 4}[self.kind]
        *addresses, self.width, self.stride = args
        self.weights, self.scales, self.x, self.out = (
            builder.inttoptr(address, I8.as_pointer()) for address in addresses
        )
        pairs = range(self.outputs * self.rows)
        zero = ir.Constant(vector_of(F32), [0.0] * LANES)
        self.totals = [cgutils.alloca_once_value(builder, zero) for _ in pairs]
        self.rests = [cgutils.alloca_once_value(builder, ir.Constant(F32, 0.0)) for _ in pairs]

    def emit(self) -> None:
        """Add LANES inputs at a time, then those left over one by one."""
        builder, lanes = self.builder, number(LANES)
        whole = builder.mul(builder.udiv(self.width, lanes), lanes)
        with cgutils.for_range(builder, builder.udiv(self.width, lanes)) as loop:
            self._add(builder.mul(loop.index, lanes), vector_of, self.totals)
        with cgutils.for_range(builder, self.width, start=whole) as loop:
            self._add(loop.index, lambda kind: kind, self.rests)
        self._store()

    def _add(self, index: ir.Value, shape: Any, totals: list[ir.Value]) -> None:
        """Add the products of weights and inputs from an index on; shape makes their type."""
        builder = self.builder
        inputs = [
            load(builder, self.x, self._at(row, index, 4), shape(F32), 4)
            for row in range(self.rows)
        ]
        for output in range(self.outputs):
            at = self._at(output, index, self.size)
            weight = self._wide(load(builder, self.weights, at, shape(self.kind), self.size))
            for row, x in enumerate(inputs):
                total = totals[output * self.rows + row]
                builder.store(multiply_add(builder, x, weight, builder.load(total)), total)

    def _at(self, row: int, index: ir.Value, size: int) -> ir.Value:
        """Return the offset in bytes of a number of a row."""
        builder = self.builder
        at = builder.add(builder.mul(number(row), self.width), index)
        return builder.mul(at, number(size))

    def _wide(self, x: ir.Value) -> ir.Value:
        """Return a number or numbers of the weight's kind in float32."""
        vector = isinstance(x.type, ir.VectorType)
        if self.kind == I8:
            whole = self.builder.sext(x, vector_of(I32) if vector else I32)
            return self.builder.sitofp(whole, vector_of(F32) if vector else F32)
        return x if self.kind == F32 else self.builder.fpext(x, vector_of(F32) if vector else F32)

    def _store(self) -> None:
        """Write each total times its output's scale to the outputs."""
        builder = self.builder
        kind = ir.FunctionType(F32, [F32, vector_of(F32)])
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        for output in range(self.outputs):
            scale = None
            if self.kind == I8:
                scale = load(builder, self.scales, number(4 * output), F32, 4)
            for row in range(self.rows):
                pair = output * self.rows + row
                total, rest = builder.load(self.totals[pair]), builder.load(self.rests[pair])
                total = builder.call(reduce, [rest, total], fastmath=("reassoc",))
                total = total if scale is None else builder.fmul(total, scale)
                at = builder.add(builder.mul(number(row), self.stride), number(output))
                at = builder.gep(self.out, [builder.mul(at, number(4))])
                builder.store(total, builder.bitcast(at, F32.as_pointer()), align=4)


def _rows_product(kind: ir.Type, outputs: int, rows: int):
    """Return an intrinsic: rows of a weight (outputs, width) times inputs (rows, width).

    All are given by address; 8-bit weights have a scale per output. stride counts the numbers
    between rows of out.
    """

    @intrinsic
    def dots(context, weights, scales, x, out, width, stride):
        def make(lower, builder, signature, args):
            _RowsProduct(builder, (kind, outputs, rows), args).emit()
            return lower.get_dummy_value()

        return types.void(*[types.int64] * 6), make

    return dots


ints_1, ints_2, ints_3, ints_4 = (_rows_product(I8, TILE, rows) for rows in range(1, 5))
halves_1, halves_2, halves_3, halves_4 = (_rows_product(F16, TILE, rows) for rows in range(1, 5))
floats_1, floats_2, floats_3, floats_4 = (_rows_product(F32, TILE, rows) for rows in range(1, 5))
int_1, half_1, float_1 = (_rows_product(kind, 1, 1) for kind in (I8, F16, F32))


@intrinsic
def pointer(context, address):
    """Return an address as a pointer."""

    def make(lower, builder, signature, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), make


def _element(lower, builder, array_type, array, index):
    """Return a pointer to an element of an int64 array."""
    struct = lower.make_array(array_type)(lower, builder, array)
    return builder.gep(struct.data, [index])


@intrinsic
def read(context, array, index):
    """Return array[index] as other threads last wrote it (acquire)."""

    def make(lower, builder, signature, args):
        element = _element(lower, builder, signature.args[0], *args)
        return builder.load_atomic(element, "acquire", 8)

    return types.int64(array, types.intp), make


@intrinsic
def write(context, array, index, value):
    """Set array[index] for other threads, after all earlier writes (release)."""

    def make(lower, builder, signature, args):
        array, index, value = args
        element = _element(lower, builder, signature.args[0], array, index)
        builder.store_atomic(value, element, "release", 8)
        return lower.get_dummy_value()

    return types.void(array, types.intp, types.int64), make


@intrinsic
def add(context, array, index, value):
    """Add to array[index] atomically; return the old value."""

    def make(lower, builder, signature, args):
        array, index, value = args
        element = _element(lower, builder, signature.args[0], array, index)
        return builder.atomic_rmw("add", element, value, "acq_rel")

    return types.int64(array, types.intp, types.int64), make


@intrinsic
def swap(context, array, index, old, new):
    """Set array[index] to new if it is old; return whether it was."""

    def make(lower, builder, signature, args):
        array, index, old, new = args
        element = _element(lower, builder, signature.args[0], array, index)
        result = builder.cmpxchg(element, old, new, "acq_rel", "acquire")
        return builder.extract_value(result, 1)

    return types.boolean(array, types.intp, types.int64, types.int64), make

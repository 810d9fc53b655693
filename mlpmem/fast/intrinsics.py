"""LLVM code that numba cannot express: 4-bit products over vectors, prefetch, and atomics.

Compiled code (`step_kernels.py`) calls these intrinsics. `few_rows.Lanes` describes a weight in
lanes.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES, GROUP = 16, 32  # outputs side by side; inputs that share a scale
LINE, AHEAD = 64, 4096  # bytes of a cache line, and how far ahead weights are prefetched

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
F16, F32 = ir.HalfType(), ir.FloatType()


def _vector(kind: ir.Type) -> ir.VectorType:
    """Return the type of LANES numbers."""
    return ir.VectorType(kind, LANES)


def _number(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def _splat(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return a float32 repeated in every lane."""
    empty = ir.Constant(_vector(F32), ir.Undefined)
    one = builder.insert_element(empty, x, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, empty, ir.Constant(_vector(I32), [0] * LANES))


def _add(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """Return x * y + z, rounded once if the processor can."""
    flags = ("contract",)
    return builder.fadd(builder.fmul(x, y, flags=flags), z, flags=flags)


def _load(
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
        self.zero = ir.Constant(_vector(F32), [0.0] * LANES)
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
        begin = builder.mul(_number(row), self.width)
        index = builder.add(begin, builder.mul(group, _number(GROUP)))
        return builder.gep(self.x, [builder.mul(index, _number(4))])

    def _prefetch_weights(self, group: ir.Value) -> None:
        """Prefetch the weights and scales that are AHEAD of a group."""
        builder = self.builder
        begin = builder.mul(group, _number(GROUP * LANES // 2))
        for line in range(GROUP * LANES // 2 // LINE):
            ahead = builder.add(begin, _number(AHEAD + LINE * line))
            _prefetch(builder, builder.gep(self.weights, [ahead]))
        begin = builder.mul(group, _number(4 * LANES))
        ahead = builder.add(begin, _number(AHEAD // 4))
        _prefetch(builder, builder.gep(self.scales, [ahead]))

    def _multiply(self, group: ir.Value, inputs: list[ir.Value]) -> list[list[ir.Value]]:
        """Return each row's partial sums of input * q over a group.

        A row has several chains of sums, so that additions do not wait for each other.
        """
        builder, chains = self.builder, max(1, 4 // self.rows)
        begin = builder.mul(group, _number(GROUP * LANES // 2))
        partial = [[self.zero] * (2 * chains) for _ in range(self.rows)]
        for j in range(GROUP // 2):
            offset = builder.add(begin, _number(LANES * j))
            packed = _load(builder, self.weights, offset, _vector(I8), LANES)
            packed = builder.zext(packed, _vector(I32))
            low = builder.and_(packed, ir.Constant(_vector(I32), [15] * LANES))
            high = builder.lshr(packed, ir.Constant(_vector(I32), [4] * LANES))
            halves = [builder.sitofp(half, _vector(F32)) for half in (low, high)]
            for row in range(self.rows):
                for k, half in enumerate(halves):
                    at = _number(4 * (j + k * GROUP // 2))
                    x = _splat(builder, _load(builder, inputs[row], at, F32, 4))
                    chain = 2 * (j % chains) + k
                    partial[row][chain] = _add(builder, x, half, partial[row][chain])
        return partial

    def _add_group(self, group: ir.Value, partial: list[list[ir.Value]]) -> None:
        """Add scale * (sum of input * q) + offset * (sum of inputs) to each row's total."""
        builder = self.builder
        begin = builder.mul(group, _number(4 * LANES))
        scale = _load(builder, self.scales, begin, _vector(F16), 32)
        scale = builder.fpext(scale, _vector(F32))
        begin = builder.add(begin, _number(2 * LANES))
        offset = _load(builder, self.scales, begin, _vector(F16), 32)
        offset = builder.fpext(offset, _vector(F32))
        for row in range(self.rows):
            total = partial[row][0]
            for part in partial[row][1:]:
                total = builder.fadd(total, part)
            at = builder.add(builder.mul(_number(row), self.groups), group)
            inputs = _load(builder, self.sums, builder.mul(at, _number(4)), F32, 4)
            total = _add(builder, scale, total, builder.load(self.totals[row]))
            total = _add(builder, offset, _splat(builder, inputs), total)
            builder.store(total, self.totals[row])

    def _store(self) -> None:
        """Write each row's total to the outputs."""
        builder = self.builder
        for row in range(self.rows):
            at = builder.mul(builder.mul(_number(row), self.stride), _number(4))
            address = builder.bitcast(builder.gep(self.out, [at]), _vector(F32).as_pointer())
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

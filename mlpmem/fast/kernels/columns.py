"""LLVM code of a product whose rows lie side by side: many tokens' outputs by one weight.

Inputs are transposed once, (D, R); a number of the weight then meets LANES rows at once. So no sum
runs across lanes, as it does where each row's numbers lie side by side.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

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

VECTORS, OUTPUTS = 2, 12  # of a tile: VECTORS x LANES rows, whose totals fill the registers
ROWS = VECTORS * LANES


class _ColumnsProduct:
    """The code of `outputs` outputs for LANES times `vectors` rows."""

    def __init__(self, builder: ir.IRBuilder, shape: tuple, args: list[ir.Value]) -> None:
        """Read shape (vectors, outputs) and the arguments of `product`; clear the totals."""
        self.builder, (self.vectors, self.outputs) = builder, shape
        *addresses, self.width, self.stride = args
        self.weights, self.x, self.out = (
            builder.inttoptr(address, I8.as_pointer()) for address in addresses
        )
        zero = ir.Constant(vector_of(F32), [0.0] * LANES)
        self.totals = [
            [cgutils.alloca_once_value(builder, zero) for _ in range(self.vectors)]
            for _ in range(self.outputs)
        ]

    def emit(self) -> None:
        """Add the products of an input of all rows at a time, then store the totals."""
        builder = self.builder
        with cgutils.for_range(builder, self.width) as loop:
            inputs = [
                load(builder, self.x, self._at(loop.index, vector), vector_of(F32), 4)
                for vector in range(self.vectors)
            ]
            for output, totals in enumerate(self.totals):
                at = builder.add(builder.mul(number(output), self.width), loop.index)
                weight = load(builder, self.weights, builder.mul(at, number(4)), F32, 4)
                weight = splat(builder, weight)
                for x, total in zip(inputs, totals, strict=True):
                    builder.store(multiply_add(builder, x, weight, builder.load(total)), total)
        for output, totals in enumerate(self.totals):
            for vector, total in enumerate(totals):
                place = builder.gep(self.out, [self._at(number(output), vector)])
                place = builder.bitcast(place, vector_of(F32).as_pointer())
                builder.store(builder.load(total), place, align=4)

    def _at(self, line: ir.Value, vector: int) -> ir.Value:
        """Return the offset in bytes of a vector of a line of inputs or outputs."""
        builder = self.builder
        at = builder.add(builder.mul(line, self.stride), number(LANES * vector))
        return builder.mul(at, number(4))


def _columns_product(vectors: int, outputs: int):
    """Return an intrinsic: rows of a weight (outputs, width) times inputs (width, LANES vectors).

    All are float32 and given by address. stride counts the numbers between lines of x and of out.
    """

    @intrinsic
    def product(context, weights, x, out, width, stride):
        def make(lower, builder, signature, args):
            _ColumnsProduct(builder, (vectors, outputs), args).emit()
            return lower.get_dummy_value()

        return types.void(*[types.int64] * 5), make

    return product


tile, line = (_columns_product(VECTORS, outputs) for outputs in (OUTPUTS, 1))
half_tile, half_line = (_columns_product(1, outputs) for outputs in (OUTPUTS, 1))

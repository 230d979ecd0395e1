"""Turning small squares of numbers inside compiled loops, which compilers do not make vector instructions of."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# Rows and columns of a square, by the type of its numbers.
SIDE_OF_BYTES, SIDE_OF_FLOATS = 16, 8
_SIDES = {types.uint8: SIDE_OF_BYTES, types.float32: SIDE_OF_FLOATS}


@intrinsic
def turn_square(context: Any, source: Any, target: Any) -> Any:
    """Write `target` = `source` transposed: uint8 [16, 16] or float32 [8, 8], rows without gaps in them.

    Every step lays the first half of the rows and the second one together like two halves of a pack of cards; after
    as many steps as the side has bits, columns have become rows.
    """
    side = _SIDES[source.dtype]
    half = side // 2
    # Numbers of the first row of a pair and, from `side` up, of the second one, in turns.
    lower = [index // 2 + index % 2 * side for index in range(side)]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(context.get_data_type(source.dtype), side)
        masks = [
            ir.Constant(ir.VectorType(ir.IntType(32), side), [index + shift for index in lower]) for shift in (0, half)
        ]

        def row(kind: Any, argument: Any, index: int) -> Any:
            array = context.make_array(kind)(context, builder, argument)
            stride = cgutils.unpack_tuple(builder, array.strides)[0]
            distance = builder.mul(stride, ir.Constant(stride.type, index))
            return builder.bitcast(cgutils.pointer_add(builder, array.data, distance), vector.as_pointer())

        rows = [builder.load(row(source, arguments[0], index), align=1) for index in range(side)]
        for _ in range(side.bit_length() - 1):
            pairs = zip(rows[:half], rows[half:], strict=True)
            rows = [builder.shuffle_vector(one, other, mask) for one, other in pairs for mask in masks]
        for index, value in enumerate(rows):
            builder.store(value, row(target, arguments[1], index), align=1)
        return context.get_dummy_value()

    return types.void(source, target), generate

"""Strips of rows turned so that rows lie side by side: [K, LANES] float32, out of float32 or FP8.

What a search computes for many rows of the matrix then fills vector registers, and no row sees its neighbours.
Behind the last row a strip holds zeros.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quantkit.arrays import Float32
from quantkit.checkpoint.dequant import BIAS, decode
from quantkit.quantize.kquants.rows import Rows
from quantkit.quantize.kquants.turn import SIDE_OF_BYTES, SIDE_OF_FLOATS, turn_square

# Rows of a strip. Groups of 32 columns of it are 8 KiB, which stays next to the processor while many scales are tried.
LANES = 64
# Columns of FP8 that are turned before they are decoded: bytes move faster than floats.
TURNED = 64


def load(rows: Rows, first: int, strip: Float32) -> int:
    """Fill `strip` [K, LANES] with the rows from `first` on; return how many they are."""
    if rows.values is not None:
        _load_float32(rows.values, first, strip)
    else:
        _load_fp8(rows.codes, rows.scale, rows.block[0], rows.block[1], rows.first_row, first, strip)
    return min(LANES, rows.shape[0] - first)


@numba.njit(nogil=True, cache=True)
def unload(turned: Any, out: Any) -> None:
    """Turn uint8 `turned` [C, LANES] back into the rows `out` [R, C], R at most LANES."""
    _turn(turned[:, : out.shape[0]], out, SIDE_OF_BYTES)


@numba.njit(forceinline=True)
def _turn(source: Any, target: Any, side: Any) -> None:
    """Write `source` [A, B] transposed to `target` [B, A], in whole squares as far as they go."""
    rows, columns = source.shape[0] // side * side, source.shape[1] // side * side
    # Column after column of the same few rows: memory is read ahead.
    for row in range(0, rows, side):
        down = slice(row, row + side)
        for column in range(0, columns, side):
            across = slice(column, column + side)
            turn_square(source[down, across], target[across, down])
    for row in range(source.shape[0]):
        for column in range(columns if row < rows else 0, source.shape[1]):
            target[column, row] = source[row, column]


@numba.njit(nogil=True, cache=True)
def _load_float32(values: Any, first: Any, strip: Any) -> None:
    count = min(LANES, values.shape[0] - first)
    if count < LANES:
        strip[:] = np.float32(0)
    _turn(values[first : first + count], strip[:, :count], SIDE_OF_FLOATS)


@numba.njit(nogil=True, cache=True)
def _load_fp8(
    codes: Any, scale: Any, block_rows: Any, block_columns: Any, first_row: Any, first: Any, strip: Any
) -> None:
    count, columns = min(LANES, codes.shape[0] - first), codes.shape[1]
    turned = np.zeros((TURNED, LANES), np.uint8)
    factors = np.zeros(LANES, np.float32)
    for begin in range(0, columns, TURNED):
        width = min(TURNED, columns - begin)
        _turn(codes[first : first + count, begin : begin + width], turned[:width, :count], SIDE_OF_BYTES)
        block = -1
        for column in range(width):
            if (begin + column) // block_columns != block:
                block = (begin + column) // block_columns
                for lane in range(count):
                    factors[lane] = scale[(first_row + first + lane) // block_rows, block] * BIAS
            target = strip[begin + column]
            for lane in range(LANES):
                target[lane] = decode(turned[column, lane]) * factors[lane]

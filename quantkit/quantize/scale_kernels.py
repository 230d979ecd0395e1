"""The loops of spanning scales and of rounding, compiled: one group of a row after the other, on one thread.

Integers inside the loops are float32 and relative to the zero. The functions with an underscore take fastmath and error
model from the kernel they are inlined into; left as calls, they would count references to their arrays all the time.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quantkit.bits import U16, U32, float_from_bits, narrow

# Scales that bfloat16 and float16 both hold exactly: 2^-14, float16's smallest normal number, to 65280.
SMALLEST, LARGEST = U16(0x3880), U16(0x477F)
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)


@numba.njit(forceinline=True)
def scale_of(bits: Any) -> Any:
    """The scale with these bits of a bfloat16."""
    return float_from_bits(U32(bits) << U32(16))


@numba.njit(forceinline=True)
def nearest_bits(value: Any) -> Any:
    """Bits of the scale nearest to the float32 `value` >= 0."""
    return min(max(narrow(value), SMALLEST), LARGEST)


@numba.njit(forceinline=True)
def spanning(low: Any, high: Any, levels: Any, symmetric: Any) -> Any:
    """The scale with which the codes just span weights from `low` <= 0 to `high` >= 0, and its zero."""
    if symmetric:
        return scale_of(nearest_bits(max(high, -low) / (levels * HALF - HALF))), levels * HALF
    scale = scale_of(nearest_bits((high - low) / (levels - ONE)))
    return scale, min(np.rint(-low / scale), levels - ONE)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def spanning_scales(weights: Any, columns: Any, levels: Any, symmetric: Any, scales: Any, zeros: Any) -> None:
    """Write the scales and zeros [N, K / g] with which the codes span each group of weights [N, K]."""
    for row in range(scales.shape[0]):
        for group in range(scales.shape[1]):
            low, high = ZERO, ZERO
            for column in range(group * columns, (group + 1) * columns):
                low = min(low, weights[row, column])
                high = max(high, weights[row, column])
            scale, zero = spanning(low, high, levels, symmetric)
            scales[row, group] = scale
            zeros[row, group] = np.uint8(zero)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def round_groups(weights: Any, scales: Any, zeros: Any, columns: Any, levels: Any, codes: Any) -> None:
    """codes = rint(weights / scales) + zeros, held within 0 and levels - 1."""
    for row in range(scales.shape[0]):
        for group in range(scales.shape[1]):
            source = weights[row, group * columns : (group + 1) * columns]
            target = codes[row, group * columns : (group + 1) * columns]
            scale, zero = scales[row, group], np.float32(zeros[row, group])
            for column in range(columns):
                code = np.rint(source[column] / scale) + zero
                # By way of int32, for which there is a vector instruction.
                target[column] = np.uint8(np.int32(min(max(code, ZERO), levels - ONE)))

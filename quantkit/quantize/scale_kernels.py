"""The loops of scale search and rounding, compiled: one group after the other, on one thread.

A candidate scale is a bfloat16, stepped through by its bits (uint16), so that what is measured is what is stored.
Integers inside the loops are float32 and relative to the zero. The functions with an underscore take fastmath and error
model from the kernel they are inlined into; left as calls, they would count references to their arrays all the time.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quantkit.bits import U16, U32, float_from_bits, narrow

# Sums may be reordered and fused, so that they become vector instructions. NaN and infinities are still honoured.
REORDER = {"reassoc", "contract", "nsz"}
# Scales that bfloat16 and float16 both hold exactly: 2^-14, float16's smallest normal number, to 65280.
SMALLEST, LARGEST = U16(0x3880), U16(0x477F)
# The search begins so much above the scale that spans a group: with few weights, or few that matter, a larger scale
# often happens to meet them better.
HEADROOM = np.float32(1.2)
ZERO, QUARTER, HALF, ONE = np.float32(0), np.float32(0.25), np.float32(0.5), np.float32(1)


@numba.njit(forceinline=True)
def _scale(bits: Any) -> Any:
    return float_from_bits(U32(bits) << U32(16))


@numba.njit(forceinline=True)
def _nearest_bits(value: Any) -> Any:
    """Bits of the scale nearest to the float32 `value` >= 0."""
    return min(max(narrow(value), SMALLEST), LARGEST)


@numba.njit(forceinline=True, fastmath=False)
def _reciprocal(scale: Any) -> Any:
    # Under REORDER, multiplications by it would become divisions, at half the speed.
    return ONE / scale


@numba.njit(forceinline=True)
def _span(weights: Any, levels: Any, symmetric: Any) -> Any:
    """The scale with which the codes just span the weights and 0, not rounded yet, and its zero."""
    low, high = ZERO, ZERO
    for column in range(weights.shape[0]):
        low = min(low, weights[column])
        high = max(high, weights[column])
    if symmetric:
        return max(high, -low) / (levels * HALF - HALF), levels * HALF
    scale = (high - low) / (levels - ONE)
    return scale, min(np.rint(-low / _scale(_nearest_bits(scale))), levels - ONE)


@numba.njit(forceinline=True)
def _error(weights: Any, importance: Any, scale: Any, zero: Any, levels: Any) -> Any:
    """Sum of importance * (weight - rounded weight)^2."""
    inverse = _reciprocal(scale)
    low, high = -zero, levels - ONE - zero
    total = ZERO
    for column in range(weights.shape[0]):
        value = weights[column] * inverse
        miss = value - np.rint(min(max(value, low), high))
        total += importance[column] * (miss * miss)
    return total * scale * scale


@numba.njit(forceinline=True)
def _errors(weights: Any, importance: Any, scale: Any, zero: Any, levels: Any) -> Any:
    """The same for the zeros zero - 1, zero and zero + 1."""
    inverse = _reciprocal(scale)
    low, high = -zero, levels - ONE - zero
    less, same, more = ZERO, ZERO, ZERO
    for column in range(weights.shape[0]):
        value = weights[column] * inverse
        rounded = np.rint(value)
        factor = importance[column]
        miss = value - min(max(rounded, low + ONE), high + ONE)
        less += factor * (miss * miss)
        miss = value - min(max(rounded, low), high)
        same += factor * (miss * miss)
        miss = value - min(max(rounded, low - ONE), high - ONE)
        more += factor * (miss * miss)
    square = scale * scale
    return less * square, same * square, more * square


@numba.njit(forceinline=True)
def _least_error(weights: Any, importance: Any, scale: Any, zero: Any, levels: Any, symmetric: Any) -> Any:
    """The error and the zero; with an asymmetric grid, those of the best among `zero` and its neighbours."""
    if symmetric:
        return _error(weights, importance, scale, zero, levels), zero
    less, error, more = _errors(weights, importance, scale, zero, levels)
    found = zero
    if less < error and zero >= ONE:
        error, found = less, zero - ONE
    if more < error and zero + ONE < levels:
        error, found = more, zero + ONE
    return error, found


@numba.njit(forceinline=True)
def _search(weights: Any, importance: Any, levels: Any, symmetric: Any, step: Any) -> Any:
    """Bits of the best scale of a group, and its zero."""
    spanning, zero = _span(weights, levels, symmetric)
    best, best_zero = _nearest_bits(spanning), zero
    best_error = _error(weights, importance, _scale(best), zero, levels)
    mass = ZERO
    for column in range(importance.shape[0]):
        mass += importance[column]
    # Down from the headroom. From one scale to the next the best zero hardly moves, so it is followed.
    bits = _nearest_bits(spanning * HEADROOM)
    while bits >= SMALLEST:
        scale = _scale(bits)
        error, zero = _least_error(weights, importance, scale, zero, levels, symmetric)
        if error < best_error:
            best, best_zero, best_error = bits, zero, error
        # Rounding misses by up to half a scale; the rest is clipping, which smaller scales only make worse.
        if error - mass * QUARTER * scale * scale > best_error:
            break
        bits -= U16(step)
    centre, centre_zero = best, best_zero
    for distance in range(1 - step, step):
        bits = U16(centre + distance)
        if SMALLEST <= bits <= LARGEST:
            error, zero = _least_error(weights, importance, _scale(bits), centre_zero, levels, symmetric)
            if error < best_error:
                best, best_zero, best_error = bits, zero, error
    return best, best_zero


@numba.njit(nogil=True, cache=True, fastmath=REORDER, error_model="numpy")
def spanning_scales(weights: Any, columns: Any, levels: Any, symmetric: Any, scales: Any, zeros: Any) -> None:
    """Write the scales and zeros [N, K / g] with which the codes span each group of weights [N, K]."""
    for row in range(scales.shape[0]):
        for group in range(scales.shape[1]):
            part = weights[row, group * columns : (group + 1) * columns]
            scale, zero = _span(part, levels, symmetric)
            scales[row, group] = _scale(_nearest_bits(scale))
            zeros[row, group] = np.uint8(zero)


@numba.njit(nogil=True, cache=True, fastmath=REORDER, error_model="numpy")
def least_error_scales(
    weights: Any, importance: Any, columns: Any, levels: Any, symmetric: Any, step: Any, scales: Any, zeros: Any
) -> None:
    """Write the scales and zeros [N, K / g] with the least error of weights [N, K] under importance [K].

    Every step-th bfloat16 is tried at first, then all around the best of them.
    """
    for row in range(scales.shape[0]):
        for group in range(scales.shape[1]):
            part = slice(group * columns, (group + 1) * columns)
            bits, zero = _search(weights[row, part], importance[part], levels, symmetric, step)
            scales[row, group] = _scale(bits)
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

"""The search for the scales with the least error, compiled: the rows of a strip lie side by side in vector registers.

A strip holds rows of a matrix turned, [K, LANES]. Every pass measures one candidate scale of each lane; a lane never
sees the others, which is why a row's scale does not depend on its neighbours.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quantkit.bits import U16
from quantkit.quantize.kquants.arithmetic import ROUNDER, select
from quantkit.quantize.kquants.tiles import LANES
from quantkit.quantize.scale_kernels import LARGEST, ONE, SMALLEST, ZERO, nearest_bits, scale_of, spanning

# Products may be fused with sums. Reordering would undo the rounding below.
FUSE = {"contract", "nsz"}
# The search begins so many bfloat16s (a factor of 1.18 to 1.31) above the scale that spans a group: with few weights,
# or few that matter, a larger scale often happens to meet them better.
HEADROOM = 40
# Steps of more than one bfloat16 are doubled from so many below it on: there few groups have their best scale.
NEAR = 64
# What is tried around the best scale of the first round, as parts of it: a third of the way to its neighbours there.
LESS, MORE = np.float32(2 ** (-1 / 48)), np.float32(2 ** (1 / 48))
# A uniform miss, in scales: mean and standard deviation of its square, the latter times 4. And the most it can be.
MEAN_SQUARE, FOUR_DEVIATIONS, MOST_SQUARE = np.float32(1 / 12), np.float32(4 / 180**0.5), np.float32(0.25)
# What is kept of every lane. Of the candidate: scale, zero, inverse, bounds of the integers (with ROUNDER added), sums.
SCALE, ZERO_POINT, INVERSE, LOW, HIGH, SQUARES, PRODUCTS = range(7)
# Of the best candidate: scale, zero and error. The same of the best one after its scale was fitted to its integers.
BEST, FITTED = 7, 10
# The scale that spans the group; the sum of factor * weight^2, in its squares; the zero with the least error at the
# last scale, and that error; 1 while smaller scales may be better.
SPAN, POWER, FOLLOWED, FOLLOWED_ERROR, GOES_ON, CENTRE, SPAN_ZERO = range(13, 20)
LANE_ROWS = 20
INFINITY, SMALLEST_SCALE = np.float32(np.inf), np.float32(2.0**-14)
# What differs by less is the same: sums in float32 are not exact.
CLEARLY_LESS = np.float32(1 - 2.0**-18)
# Sums of integers below this part of what they are computed from are nothing but rounding errors.
DIGITS = np.float32(2.0**-12)


@numba.njit(forceinline=True)
def _add(weight: Any, factor: Any, inverse: Any, low: Any, high: Any, squares: Any, products: Any) -> Any:
    """Add one column to the two sums of `_measure`."""
    value = weight * inverse
    miss = value - (min(max(value + ROUNDER, low), high) - ROUNDER)
    weighted = miss if factor is None else factor * miss
    return squares + weighted * miss, products + weighted * value


@numba.njit(forceinline=True)
def _measure(strip: Any, importance: Any, begin: Any, end: Any, lanes: Any) -> None:
    """Write the sums of factor * miss^2 and factor * miss * value of every lane over columns `begin` to `end`.

    A value is weight * inverse; its miss is what is left of it when the nearest integer is taken away.
    """
    lanes[SQUARES] = ZERO
    lanes[PRODUCTS] = ZERO
    whole = end - (end - begin) % 8
    for first in range(begin, whole, 8):
        for lane in range(LANES):
            inverse, low, high = lanes[INVERSE, lane], lanes[LOW, lane], lanes[HIGH, lane]
            squares, products = lanes[SQUARES, lane], lanes[PRODUCTS, lane]
            factor = None if importance is None else importance[first]
            squares, products = _add(strip[first, lane], factor, inverse, low, high, squares, products)
            factor = None if importance is None else importance[first + 1]
            squares, products = _add(strip[first + 1, lane], factor, inverse, low, high, squares, products)
            factor = None if importance is None else importance[first + 2]
            squares, products = _add(strip[first + 2, lane], factor, inverse, low, high, squares, products)
            factor = None if importance is None else importance[first + 3]
            squares, products = _add(strip[first + 3, lane], factor, inverse, low, high, squares, products)
            factor = None if importance is None else importance[first + 4]
            squares, products = _add(strip[first + 4, lane], factor, inverse, low, high, squares, products)
            factor = None if importance is None else importance[first + 5]
            squares, products = _add(strip[first + 5, lane], factor, inverse, low, high, squares, products)
            factor = None if importance is None else importance[first + 6]
            squares, products = _add(strip[first + 6, lane], factor, inverse, low, high, squares, products)
            factor = None if importance is None else importance[first + 7]
            squares, products = _add(strip[first + 7, lane], factor, inverse, low, high, squares, products)
            lanes[SQUARES, lane], lanes[PRODUCTS, lane] = squares, products
    for column in range(whole, end):
        for lane in range(LANES):
            inverse, low, high = lanes[INVERSE, lane], lanes[LOW, lane], lanes[HIGH, lane]
            squares, products = lanes[SQUARES, lane], lanes[PRODUCTS, lane]
            factor = None if importance is None else importance[column]
            squares, products = _add(strip[column, lane], factor, inverse, low, high, squares, products)
            lanes[SQUARES, lane], lanes[PRODUCTS, lane] = squares, products


@numba.njit(forceinline=True)
def _keep_better(lanes: Any, kept: Any, lane: Any, scale: Any, zero: Any, error: Any) -> None:
    better = error < lanes[kept + 2, lane] * CLEARLY_LESS
    lanes[kept, lane] = select(better, scale, lanes[kept, lane])
    lanes[kept + 1, lane] = select(better, zero, lanes[kept + 1, lane])
    lanes[kept + 2, lane] = select(better, error, lanes[kept + 2, lane])


@numba.njit(forceinline=True)
def _fitted(lanes: Any, lane: Any) -> Any:
    """The scale nearest to the one that is best for the candidate's integers, and the error it has with them."""
    scale, squares, products = lanes[SCALE, lane], lanes[SQUARES, lane], lanes[PRODUCTS, lane]
    ratio = lanes[SPAN, lane] * lanes[INVERSE, lane]
    power = lanes[POWER, lane] * ratio * ratio
    # With integer = value - miss: the sums of factor * integer^2 and of factor * miss * integer.
    integers = power - products - products + squares
    mixed = products - squares
    shift = select(integers > power * DIGITS, mixed / integers, ZERO)
    nearest = scale_of(nearest_bits(scale + scale * shift))
    off = nearest * lanes[INVERSE, lane] - ONE - shift
    return nearest, (squares - mixed * shift + off * off * integers) * scale * scale


@numba.njit(forceinline=True)
def _try(strip: Any, importance: Any, begin: Any, end: Any, levels: Any, lanes: Any) -> None:
    """Measure the candidates, each a scale and a zero, and keep what is better than all before."""
    for lane in range(LANES):
        lanes[INVERSE, lane] = ONE / lanes[SCALE, lane]
        lanes[LOW, lane] = ROUNDER - lanes[ZERO_POINT, lane]
        lanes[HIGH, lane] = ROUNDER + (levels - ONE - lanes[ZERO_POINT, lane])
    _measure(strip, importance, begin, end, lanes)
    for lane in range(LANES):
        scale, zero = lanes[SCALE, lane], lanes[ZERO_POINT, lane]
        error = lanes[SQUARES, lane] * scale * scale
        _keep_better(lanes, BEST, lane, scale, zero, error)
        nearest, less = _fitted(lanes, lane)
        _keep_better(lanes, FITTED, lane, nearest, zero, less)
        closer = error < lanes[FOLLOWED_ERROR, lane]
        lanes[FOLLOWED, lane] = select(closer, zero, lanes[FOLLOWED, lane])
        lanes[FOLLOWED_ERROR, lane] = select(closer, error, lanes[FOLLOWED_ERROR, lane])


@numba.njit(forceinline=True)
def _scale_beside(scale: Any, offset: Any) -> Any:
    """The scale so many bfloat16s above `scale`, or the last one there is."""
    bits = np.int32(nearest_bits(scale)) + offset
    return scale_of(U16(min(max(bits, np.int32(SMALLEST)), np.int32(LARGEST))))


@numba.njit(forceinline=True)
def _try_at(
    offset: Any, strip: Any, importance: Any, begin: Any, end: Any, levels: Any, zero_points: Any, lanes: Any
) -> None:
    """Try the scales `offset` bfloat16s above those that span, with so many zeros.

    From one scale to the next the best zero hardly moves, so it is followed. Lanes that have come to their end try what
    they began with: they must not see what others still try.
    """
    for lane in range(LANES):
        goes_on, span = lanes[GOES_ON, lane] > ZERO, lanes[SPAN, lane]
        lanes[SCALE, lane] = select(goes_on, _scale_beside(span, offset), span)
        lanes[CENTRE, lane] = select(goes_on, lanes[FOLLOWED, lane], lanes[SPAN_ZERO, lane])
        lanes[FOLLOWED_ERROR, lane] = INFINITY
    for turn in range(zero_points):  # the followed one, the one above, the one below
        distance = np.float32(turn if turn < 2 else -1)
        for lane in range(LANES):
            lanes[ZERO_POINT, lane] = min(max(lanes[CENTRE, lane] + distance, ZERO), levels - ONE)
        _try(strip, importance, begin, end, levels, lanes)


@numba.njit(forceinline=True)
def _try_around(strip: Any, importance: Any, begin: Any, end: Any, levels: Any, lanes: Any) -> None:
    """Try both sides of the best fitted scale; then the best fitted one by now, and its neighbours."""
    for turn in range(5):
        for lane in range(LANES):
            if turn in (0, 2):
                lanes[CENTRE, lane] = lanes[FITTED, lane]
                lanes[ZERO_POINT, lane] = lanes[FITTED + 1, lane]
            centre = lanes[CENTRE, lane]
            if turn < 2:
                lanes[SCALE, lane] = _scale_beside(centre * (LESS if turn == 0 else MORE), np.int32(0))
            else:
                lanes[SCALE, lane] = _scale_beside(centre, np.int32(turn - 3))
        _try(strip, importance, begin, end, levels, lanes)


@numba.njit(forceinline=True)
def _go_on(mass: Any, likely: Any, lanes: Any) -> Any:
    """Count the lanes for which smaller scales may be better."""
    count = 0
    for lane in range(LANES):
        scale = lanes[SCALE, lane]
        # What rounding cannot have missed was clipped, which smaller scales only make worse.
        clipped = lanes[FOLLOWED_ERROR, lane] - min(mass * MOST_SQUARE, likely) * scale * scale
        further = clipped < lanes[BEST + 2, lane] and scale > SMALLEST_SCALE
        lanes[GOES_ON, lane] = select(further, lanes[GOES_ON, lane], ZERO)
        count += lanes[GOES_ON, lane] > ZERO
    return count


@numba.njit(forceinline=True)
def _begin(strip: Any, importance: Any, begin: Any, end: Any, levels: Any, symmetric: Any, lanes: Any) -> Any:
    """Set the lanes to the scales that span; return the sum of the factors, and that of likely squared misses."""
    lanes[LOW] = ZERO
    lanes[HIGH] = ZERO
    lanes[POWER] = ZERO
    for column in range(begin, end):
        for lane in range(LANES):
            lanes[LOW, lane] = min(lanes[LOW, lane], strip[column, lane])
            lanes[HIGH, lane] = max(lanes[HIGH, lane], strip[column, lane])
    for lane in range(LANES):
        span, zero = spanning(lanes[LOW, lane], lanes[HIGH, lane], levels, symmetric)
        lanes[SPAN, lane] = lanes[BEST, lane] = lanes[FITTED, lane] = span
        lanes[SPAN_ZERO, lane] = lanes[BEST + 1, lane] = lanes[FITTED + 1, lane] = lanes[FOLLOWED, lane] = zero
        lanes[BEST + 2, lane] = lanes[FITTED + 2, lane] = INFINITY
        lanes[GOES_ON, lane] = ONE
        lanes[INVERSE, lane] = ONE / span
    mass, spread = ZERO, ZERO
    for column in range(begin, end):
        factor = ONE if importance is None else importance[column]
        mass += factor
        spread += factor * factor
        for lane in range(LANES):
            value = strip[column, lane] * lanes[INVERSE, lane]
            lanes[POWER, lane] += factor * value * value
    return mass, mass * MEAN_SQUARE + FOUR_DEVIATIONS * np.sqrt(spread)


@numba.njit(forceinline=True)
def _search(
    strip: Any,
    importance: Any,
    begin: Any,
    end: Any,
    levels: Any,
    symmetric: Any,
    step: Any,
    scales: Any,
    zeros: Any,
    lanes: Any,
) -> None:
    """Write the `scales` and `zeros` [LANES] of a group."""
    mass, likely = _begin(strip, importance, begin, end, levels, symmetric, lanes)
    offset, going = 0, LANES
    while going > 0:  # the spanning scale first, of equal ones the first is kept; then above it, then below
        _try_at(np.int32(offset), strip, importance, begin, end, levels, 1 if symmetric else 3, lanes)
        if offset < 0:
            going = _go_on(mass, likely, lanes)
        if 0 <= offset < HEADROOM:
            offset += step
        elif offset >= HEADROOM:
            offset = -step
            lanes[FOLLOWED] = lanes[SPAN_ZERO]
        else:
            offset -= step if step == 1 or offset > -NEAR else 2 * step
    if step > 1:
        _try_around(strip, importance, begin, end, levels, lanes)
    for lane in range(LANES):
        scales[lane] = lanes[BEST, lane]
        zeros[lane] = np.uint8(lanes[BEST + 1, lane])


@numba.njit(nogil=True, cache=True, fastmath=FUSE, error_model="numpy")
def least_error_scales(
    strip: Any, importance: Any, columns: Any, levels: Any, symmetric: Any, step: Any, scales: Any, zeros: Any
) -> None:
    """Write the scales and zeros [K / g, LANES] with the least error of `strip` [K, LANES].

    `importance` is float32 [K], or None: all columns alike. Every step-th bfloat16 is tried at first, from HEADROOM
    above the spanning one down to where clipping alone costs more than the best; each is also fitted to the integers
    that it leads to. Where steps leave scales out, the surroundings of the best follow.
    """
    lanes = np.empty((LANE_ROWS, LANES), np.float32)
    for group in range(scales.shape[0]):
        begin, end = group * columns, (group + 1) * columns
        _search(strip, importance, begin, end, levels, symmetric, step, scales[group], zeros[group], lanes)

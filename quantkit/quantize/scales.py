"""Scales and zeros for a matrix on an integer grid, and the rounding to it.

Every scale is a bfloat16 from 2^-14 to 65280, which float16 holds exactly too. Weights must be finite; what is so
small that 2^-14 rounds it to nothing becomes 0, and a group of zeros has the scale 2^-14 and codes equal to its zero.
Groups are independent of each other: rows may be split over threads at will.
"""

from __future__ import annotations

import numpy as np

from quantkit.arrays import Bytes, Float32
from quantkit.quantize.integers import IntegerGrid, Quantized
from quantkit.quantize.kquants import tiles
from quantkit.quantize.kquants.rows import Rows
from quantkit.quantize.kquants.tiles import LANES
from quantkit.quantize.scale_kernels import round_groups, spanning_scales
from quantkit.quantize.search_kernels import least_error_scales

# The smallest and the largest scale.
SMALLEST, LARGEST = 2.0**-14, 65280.0


def min_max_scales(weights: Float32, grid: IntegerGrid) -> tuple[Float32, Bytes]:
    """Return scales and zeros [N, K / g] with which the codes span each group of `weights` float32 [N, K].

    Symmetric: scale = max |w| / (2^(bits - 1) - 0.5), so that no weight is off by more than half a scale.
    Asymmetric: scale = (max - min) / (2^bits - 1) over the group's weights and 0, zero = rint(-min / scale).
    """
    scales, zeros = _empty(weights, grid)
    columns = grid.columns(weights.shape[1])
    spanning_scales(weights, columns, np.float32(grid.levels), grid.symmetric, scales, zeros)
    return scales, zeros


def search_scales(weights: Float32, grid: IntegerGrid, importance: Float32 | None = None) -> tuple[Float32, Bytes]:
    """Return the scales and zeros [N, K / g] with the least rounding error of `weights` float32 [N, K].

    The error of a group is sum of importance * (w - rounded w)^2; `importance` [K] is not negative, None weighs all
    columns alike. The error is measured at bfloat16 scales from about 1.2 times the scale of min_max_scales down to
    where clipping alone costs more than the best so far, for an asymmetric grid at each scale for three zeros, and the
    best is refined. It is never above the error of min_max_scales, whose result a group without any importance keeps.
    """
    scales, zeros = _empty(weights, grid)
    columns, levels = grid.columns(weights.shape[1]), np.float32(grid.levels)
    factors = _normalized(importance)
    strip = np.empty((weights.shape[1], LANES), np.float32)
    turned_scales, turned_zeros = (np.empty((scales.shape[1], LANES), array.dtype) for array in (scales, zeros))
    for first in range(0, len(weights), LANES):
        count = tiles.load(Rows(values=weights), first, strip)
        least_error_scales(
            strip, factors, columns, levels, grid.symmetric, first_step(grid), turned_scales, turned_zeros
        )
        scales[first : first + count] = turned_scales.T[:count]
        zeros[first : first + count] = turned_zeros.T[:count]
    return scales, zeros


def first_step(grid: IntegerGrid) -> int:
    """How many bfloat16s lie between the scales that a search tries at first."""
    # One bfloat16 to the next moves the outermost of 8 integers by 1/32 to 1/16, so the error is smooth over a few;
    # of 128 integers by up to 1, and every scale is a new draw.
    return 8 if grid.bits <= 4 else 1


def round_to_grid(
    weights: Float32, scales: Float32, zeros: Bytes, grid: IntegerGrid, out: Bytes | None = None
) -> Quantized:
    """Return `weights` float32 [N, K] with the codes rint(w / scale) + zero, held within 0 and 2^bits - 1.

    The quotient is float32's, and ties go to the even integer, before the zero is added. The codes are in `out` where
    that is given.
    """
    codes = np.empty(weights.shape, np.uint8) if out is None else out
    round_groups(weights, scales, zeros, grid.columns(weights.shape[1]), np.float32(grid.levels), codes)
    return Quantized(codes, scales, zeros)


def unreachable_groups(weights: Float32, scales: Float32, grid: IntegerGrid) -> int:
    """Count the groups of `weights` [N, K] that no allowed scale fits: too small to be anything but 0, or too large."""
    rows, group = np.nonzero((scales <= SMALLEST) | (scales >= LARGEST))
    found = np.abs(weights.reshape(*scales.shape, -1)[rows, group]).max(-1, initial=0)
    return int((((found > 0) & (found < SMALLEST)) | (found > LARGEST * grid.levels)).sum())


def _normalized(importance: Float32 | None) -> Float32 | None:
    """Importance float32 [K] with a largest value of 1, far from overflow when summed."""
    if importance is None:
        return None
    largest = importance.max()
    return (importance / largest).astype(np.float32) if largest > 0 else np.zeros_like(importance)


def _empty(weights: Float32, grid: IntegerGrid) -> tuple[Float32, Bytes]:
    shape = (weights.shape[0], grid.groups(weights.shape[1]))
    return np.empty(shape, np.float32), np.empty(shape, np.uint8)

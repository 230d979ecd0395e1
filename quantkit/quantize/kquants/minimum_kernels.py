"""The search of Q2_K, Q4_K and Q5_K, compiled: step and offset of every group, d and dmin of every block.

With weights w, a group's targets x and their levels q, the error of step s and offset m, the sum of
w * (x + m - s * q)^2, follows from five sums: of w * q * x, w * q * q, w * q, w and w * x. A pass rounds a group with
one step and offset and takes those sums that depend on q; then every other step and offset with the same levels is
judged without touching the weights again. So that this keeps its digits, the lowest target of a group, if it is
negative, is first taken off all of them: m is then dmin * code + lowest.

Rows of the matrix lie side by side, see `tiles`. What is known of them is kept in two arrays, `lanes` and `kept`, whose
rows have names: only so does the compiler see that nothing overlaps, and puts the loops over rows into vectors.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quantkit.formats.gguf.blocks.table import SUPER
from quantkit.quantize.kquants.arithmetic import (
    FASTMATH,
    ROUNDER,
    TWO,
    ZERO,
    fma,
    nearest_half,
    reciprocal,
    select,
)
from quantkit.quantize.kquants.tiles import LANES

INFINITY = np.float32(np.inf)
# Less of a spread of levels than this, as a part of their mean square, is rounding noise.
NOISE = np.float32(1e-5)
# Columns per visit of the sums: they are loaded and stored less often.
TOGETHER = 8

# Rows of `kept`, so many for every group: sums of the best pass, what no level changes, what is fitted, codes.
# MINIMUM is what dmin and its code are to come close to: the offset less LOWEST.
MIXED, SQUARES, LEVELS, WEIGHT, PLAIN, LOWEST, STEP, MINIMUM, STIFFNESS, SCALE_CODE, MINIMUM_CODE = range(11)
GROUP_ROWS = 11
# Rows of `lanes`: the sums of a pass have the numbers of the first three above; then what the pass rounds with.
INVERSE, SHIFT, TRIED, HIGHEST, UNIT, BEST, D, DMIN = range(3, 11)
BEST_MIXED, BEST_SQUARES, BEST_LEVELS, BEST_CODE, BEST_MINIMUM = range(11, 16)
# The normal equations of d and dmin take the place of what a pass needs.
STEP_STEP, STEP_OFFSET, OFFSET_OFFSET, STEP_TARGET, OFFSET_TARGET = range(5)
LANE_ROWS = 16


@numba.njit(forceinline=True)
def _level(x: Any, inverse: Any, shift: Any, top: Any) -> Any:
    """The level nearest to x * inverse + shift, from 0 to `top` - ROUNDER."""
    return min(max(fma(x, inverse, shift) + ROUNDER, ROUNDER), top) - ROUNDER


@numba.njit(forceinline=True)
def _visit(x: Any, w: Any, inverse: Any, shift: Any, top: Any, mixed: Any, squares: Any, levels: Any) -> Any:
    level = _level(x, inverse, shift, top)
    weighted = w * level
    return fma(weighted, x, mixed), fma(weighted, level, squares), levels + weighted


@numba.njit(forceinline=True)
def _pass(x: Any, w: Any, top: Any, lanes: Any) -> None:
    """Round the group `x` [C, LANES] with the INVERSE and SHIFT of every row and take the sums that depend on it."""
    lanes[MIXED], lanes[SQUARES], lanes[LEVELS] = ZERO, ZERO, ZERO
    for c in range(0, x.shape[0], TOGETHER):
        for row in range(LANES):
            i, s = lanes[INVERSE, row], lanes[SHIFT, row]
            m, q, u = lanes[MIXED, row], lanes[SQUARES, row], lanes[LEVELS, row]
            m, q, u = _visit(x[c, row], w[c, row], i, s, top, m, q, u)
            m, q, u = _visit(x[c + 1, row], w[c + 1, row], i, s, top, m, q, u)
            m, q, u = _visit(x[c + 2, row], w[c + 2, row], i, s, top, m, q, u)
            m, q, u = _visit(x[c + 3, row], w[c + 3, row], i, s, top, m, q, u)
            m, q, u = _visit(x[c + 4, row], w[c + 4, row], i, s, top, m, q, u)
            m, q, u = _visit(x[c + 5, row], w[c + 5, row], i, s, top, m, q, u)
            m, q, u = _visit(x[c + 6, row], w[c + 6, row], i, s, top, m, q, u)
            m, q, u = _visit(x[c + 7, row], w[c + 7, row], i, s, top, m, q, u)
            lanes[MIXED, row], lanes[SQUARES, row], lanes[LEVELS, row] = m, q, u


@numba.njit(forceinline=True)
def _weigh(x: Any, importance: Any, spread: Any, lanes: Any, w: Any) -> None:
    """Write what errors of the block `x` [SUPER, LANES] cost: `w` = importance * sqrt(spread + x^2 / mean of x^2).

    Importance counts in parts of its mean over the block, so that no later product leaves float32's range.
    """
    total = ZERO
    for column in range(SUPER):
        total += importance[column]
    lanes[UNIT] = ZERO
    for column in range(SUPER):
        for row in range(LANES):
            lanes[UNIT, row] = fma(x[column, row], x[column, row], lanes[UNIT, row])
    for row in range(LANES):
        lanes[UNIT, row] = np.float32(SUPER) * reciprocal(lanes[UNIT, row])
    for column in range(SUPER):
        factor = importance[column] * (np.float32(SUPER) / total)
        for row in range(LANES):
            square = x[column, row] * x[column, row]
            w[column, row] = factor * np.sqrt(fma(square, lanes[UNIT, row], spread))


@numba.njit(forceinline=True)
def _survey(x: Any, w: Any, lanes: Any, kept: Any) -> None:
    """Take the lowest weight off the group `x` [C, LANES], if it is negative, and the sums that no level changes."""
    for field in range(GROUP_ROWS):
        kept[field] = ZERO
    for column in range(x.shape[0]):
        for row in range(LANES):
            kept[LOWEST, row] = min(kept[LOWEST, row], x[column, row])
    lanes[HIGHEST], lanes[BEST] = ZERO, ZERO
    for column in range(x.shape[0]):
        for row in range(LANES):
            x[column, row] -= kept[LOWEST, row]
            lanes[HIGHEST, row] = max(lanes[HIGHEST, row], x[column, row])
    for column in range(x.shape[0]):
        for row in range(LANES):
            kept[PLAIN, row] = fma(w[column, row], x[column, row], kept[PLAIN, row])
            kept[WEIGHT, row] += w[column, row]


@numba.njit(forceinline=True)
def _gain(step: Any, offset: Any, mixed: Any, squares: Any, levels: Any, weight: Any, plain: Any) -> Any:
    """What the error falls by from that of step 0 and offset 0."""
    by_step = step * (TWO * fma(offset, levels, mixed) - step * squares)
    return by_step - offset * fma(offset, weight, TWO * plain)


@numba.njit(forceinline=True)
def _fit(lanes: Any, kept: Any) -> None:
    """Fit step and offset of a group to the sums of the last pass, and keep them if nothing before was better.

    STIFFNESS is what an error of the step costs if the offset makes good for what it can.
    """
    for row in range(LANES):
        mixed, squares, levels = lanes[MIXED, row], lanes[SQUARES, row], lanes[LEVELS, row]
        weight, plain, lowest = kept[WEIGHT, row], kept[PLAIN, row], kept[LOWEST, row]
        mean = levels * reciprocal(weight)
        stiffness = squares - mean * levels
        stiffness = select(stiffness > NOISE * squares, stiffness, ZERO)
        step = (mixed - mean * plain) * reciprocal(stiffness)
        offset = (step * levels - plain) * reciprocal(weight)
        # A minimum cannot be negative: there the step is fitted alone.
        alone = (offset < lowest) | (stiffness == ZERO)
        stiffness = select(alone, squares, stiffness)
        step = select(alone, fma(lowest, levels, mixed) * reciprocal(squares), step)
        offset = select(alone, lowest, offset)
        gain = _gain(step, offset, mixed, squares, levels, weight, plain)
        better = (gain > lanes[BEST, row]) & (step > ZERO)
        lanes[BEST, row] = select(better, gain, lanes[BEST, row])
        kept[MIXED, row] = select(better, mixed, kept[MIXED, row])
        kept[SQUARES, row] = select(better, squares, kept[SQUARES, row])
        kept[LEVELS, row] = select(better, levels, kept[LEVELS, row])
        kept[STEP, row] = select(better, step, kept[STEP, row])
        kept[STIFFNESS, row] = select(better, stiffness, kept[STIFFNESS, row])


@numba.njit(forceinline=True)
def _best_offset(step: Any, levels: Any, weight: Any, plain: Any) -> Any:
    """The offset that suits a step, from the sums over a group."""
    return (step * levels - plain) * reciprocal(weight)


@numba.njit(forceinline=True)
def _search_step(x: Any, w: Any, top: Any, ratios: Any, fits: Any, lanes: Any, kept: Any) -> None:
    """Find the step of a group: its span brought to `ratios` levels, and `fits` times rounded to the best so far."""
    _survey(x, w, lanes, kept)
    lanes[SHIFT] = ZERO
    for ratio in ratios:
        for row in range(LANES):
            lanes[INVERSE, row] = reciprocal(lanes[HIGHEST, row]) * ratio
        _pass(x, w, top, lanes)
        _fit(lanes, kept)
    for _ in range(fits):
        for row in range(LANES):
            step, lowest = kept[STEP, row], kept[LOWEST, row]
            offset = max(_best_offset(step, kept[LEVELS, row], kept[WEIGHT, row], kept[PLAIN, row]), lowest)
            lanes[INVERSE, row] = reciprocal(step)
            lanes[SHIFT, row] = offset * lanes[INVERSE, row]
        _pass(x, w, top, lanes)
        _fit(lanes, kept)


@numba.njit(forceinline=True)
def _nearest_code(value: Any, inverse: Any, code_max: Any) -> Any:
    return min(max(np.rint(value * inverse), ZERO), code_max)


@numba.njit(forceinline=True)
def _search_factor(
    wanted: Any, cost: Any, factor: Any, code: Any, code_max: Any, ratios: Any, lanes: Any, kept: Any
) -> None:
    """Find the float16 `factor` and the `code` of every group whose products come closest to what is `wanted`.

    `wanted`, `cost` of an error in it and `code` name rows of `kept` [G, GROUP_ROWS, LANES], `factor` a row of `lanes`.
    The factors tried are those with which the largest wanted number gets the codes `code_max` * `ratios`.
    """
    lanes[HIGHEST], lanes[BEST], lanes[factor] = ZERO, INFINITY, ZERO
    for group in range(kept.shape[0]):
        for row in range(LANES):
            lanes[HIGHEST, row] = max(lanes[HIGHEST, row], kept[group, wanted, row])
    for ratio in ratios:
        for row in range(LANES):
            lanes[TRIED, row] = nearest_half(lanes[HIGHEST, row] / (code_max * ratio))
            lanes[INVERSE, row] = reciprocal(lanes[TRIED, row])
            lanes[MIXED, row] = ZERO
        for group in range(kept.shape[0]):
            for row in range(LANES):
                value = kept[group, wanted, row]
                error = value - _nearest_code(value, lanes[INVERSE, row], code_max) * lanes[TRIED, row]
                lanes[MIXED, row] += error * error * kept[group, cost, row]
        for row in range(LANES):
            better = lanes[MIXED, row] < lanes[BEST, row]
            lanes[BEST, row] = select(better, lanes[MIXED, row], lanes[BEST, row])
            lanes[factor, row] = select(better, lanes[TRIED, row], lanes[factor, row])
    for row in range(LANES):
        lanes[INVERSE, row] = reciprocal(lanes[factor, row])
    for group in range(kept.shape[0]):
        for row in range(LANES):
            kept[group, code, row] = _nearest_code(kept[group, wanted, row], lanes[INVERSE, row], code_max)


@numba.njit(forceinline=True)
def _fit_minimums(lanes: Any, kept: Any) -> None:
    """Fit the minimum of every group to the step that it got."""
    for group in range(kept.shape[0]):
        for row in range(LANES):
            step, lowest = lanes[D, row] * kept[group, SCALE_CODE, row], kept[group, LOWEST, row]
            offset = _best_offset(step, kept[group, LEVELS, row], kept[group, WEIGHT, row], kept[group, PLAIN, row])
            kept[group, MINIMUM, row] = max(offset - lowest, ZERO)


@numba.njit(forceinline=True)
def _minimum_code(offset: Any, lowest: Any, inverse: Any, code_max: Any) -> Any:
    """The minimum code for an offset, `inverse` being 1 / dmin."""
    return _nearest_code(offset - lowest, inverse, code_max)


@numba.njit(forceinline=True)
def _revise(x: Any, w: Any, top: Any, code_max: Any, reach: Any, lanes: Any, kept: Any) -> None:
    """Find the codes of a group that suit d and dmin best.

    For every scale code up to `reach` away the levels are those nearest with the offset that suits; of these levels the
    scale codes at most one away are judged, each with the minimum code that suits it.
    """
    lanes[BEST] = -INFINITY
    for trial in range(-reach, reach + 1):
        for row in range(LANES):
            step = lanes[D, row] * min(max(kept[SCALE_CODE, row] + np.float32(trial), ZERO), code_max)
            offset = _best_offset(step, kept[LEVELS, row], kept[WEIGHT, row], kept[PLAIN, row])
            minimum = _minimum_code(offset, kept[LOWEST, row], lanes[UNIT, row], code_max)
            lanes[INVERSE, row] = reciprocal(step)
            lanes[SHIFT, row] = fma(lanes[DMIN, row], minimum, kept[LOWEST, row]) * lanes[INVERSE, row]
        _pass(x, w, top, lanes)
        for by in range(trial - 1, trial + 2):
            _judge(by, code_max, lanes, kept)
    for row in range(LANES):
        kept[MIXED, row], kept[SQUARES, row] = lanes[BEST_MIXED, row], lanes[BEST_SQUARES, row]
        kept[LEVELS, row], kept[SCALE_CODE, row] = lanes[BEST_LEVELS, row], lanes[BEST_CODE, row]
        kept[MINIMUM_CODE, row] = lanes[BEST_MINIMUM, row]


@numba.njit(forceinline=True)
def _judge(by: Any, code_max: Any, lanes: Any, kept: Any) -> None:
    """Judge the scale code `by` away on the levels of the last pass; take it if it is the best so far."""
    for row in range(LANES):
        mixed, squares, levels = lanes[MIXED, row], lanes[SQUARES, row], lanes[LEVELS, row]
        weight, plain, lowest = kept[WEIGHT, row], kept[PLAIN, row], kept[LOWEST, row]
        code = min(max(kept[SCALE_CODE, row] + np.float32(by), ZERO), code_max)
        step = lanes[D, row] * code
        minimum = _minimum_code(_best_offset(step, levels, weight, plain), lowest, lanes[UNIT, row], code_max)
        gain = _gain(step, fma(lanes[DMIN, row], minimum, lowest), mixed, squares, levels, weight, plain)
        better = gain > lanes[BEST, row]
        lanes[BEST, row] = select(better, gain, lanes[BEST, row])
        lanes[BEST_CODE, row] = select(better, code, lanes[BEST_CODE, row])
        lanes[BEST_MINIMUM, row] = select(better, minimum, lanes[BEST_MINIMUM, row])
        lanes[BEST_MIXED, row] = select(better, mixed, lanes[BEST_MIXED, row])
        lanes[BEST_SQUARES, row] = select(better, squares, lanes[BEST_SQUARES, row])
        lanes[BEST_LEVELS, row] = select(better, levels, lanes[BEST_LEVELS, row])


@numba.njit(forceinline=True)
def _refit(lanes: Any, kept: Any) -> None:
    """Correct d and dmin by least squares over the block, codes and levels as they are, where that is better."""
    for equation in range(STEP_STEP, OFFSET_TARGET + 1):
        lanes[equation] = ZERO
    for group in range(kept.shape[0]):
        for row in range(LANES):
            code, minimum = kept[group, SCALE_CODE, row], kept[group, MINIMUM_CODE, row]
            squares, levels, weight = kept[group, SQUARES, row], kept[group, LEVELS, row], kept[group, WEIGHT, row]
            step, offset = lanes[D, row] * code, fma(lanes[DMIN, row], minimum, kept[group, LOWEST, row])
            # What is left of the sums of w * q * x and of w * x.
            mixed = fma(offset, levels, kept[group, MIXED, row]) - step * squares
            plain = fma(offset, weight, kept[group, PLAIN, row]) - step * levels
            lanes[STEP_STEP, row] = fma(code * code, squares, lanes[STEP_STEP, row])
            lanes[STEP_OFFSET, row] = fma(code * minimum, levels, lanes[STEP_OFFSET, row])
            lanes[OFFSET_OFFSET, row] = fma(minimum * minimum, weight, lanes[OFFSET_OFFSET, row])
            lanes[STEP_TARGET, row] = fma(code, mixed, lanes[STEP_TARGET, row])
            lanes[OFFSET_TARGET, row] = fma(minimum, plain, lanes[OFFSET_TARGET, row])
    for row in range(LANES):
        squares, mixed, weight = lanes[STEP_STEP, row], lanes[STEP_OFFSET, row], lanes[OFFSET_OFFSET, row]
        steps, offsets = lanes[STEP_TARGET, row], lanes[OFFSET_TARGET, row]
        # The determinant is a small difference of large products.
        wide_squares, wide_mixed, wide_weight = np.float64(squares), np.float64(mixed), np.float64(weight)
        wide_steps, wide_offsets = np.float64(steps), np.float64(offsets)
        determinant = wide_squares * wide_weight - wide_mixed * wide_mixed
        by_step = (wide_steps * wide_weight - wide_mixed * wide_offsets) / determinant
        by_offset = (wide_mixed * wide_steps - wide_squares * wide_offsets) / determinant
        d = nearest_half(lanes[D, row] + np.float32(by_step))
        dmin = nearest_half(lanes[DMIN, row] + np.float32(by_offset))
        gain = _gain(d - lanes[D, row], dmin - lanes[DMIN, row], steps, squares, mixed, weight, offsets)
        better = (d > ZERO) & (dmin > ZERO) & (gain > ZERO)
        lanes[D, row] = select(better, d, lanes[D, row])
        lanes[DMIN, row] = select(better, dmin, lanes[DMIN, row])


@numba.njit(forceinline=True)
def _store(x: Any, top: Any, lanes: Any, kept: Any, scale_codes: Any, minimum_codes: Any, codes: Any) -> None:
    """Write the codes of a group [LANES] and those of its weights [C, LANES]."""
    for row in range(LANES):
        scale_codes[row] = np.int32(kept[SCALE_CODE, row])
        minimum_codes[row] = np.int32(kept[MINIMUM_CODE, row])
        lanes[INVERSE, row] = reciprocal(lanes[D, row] * kept[SCALE_CODE, row])
        offset = fma(lanes[DMIN, row], kept[MINIMUM_CODE, row], kept[LOWEST, row])
        lanes[SHIFT, row] = offset * lanes[INVERSE, row]
    for column in range(x.shape[0]):
        for row in range(LANES):
            codes[column, row] = np.int32(_level(x[column, row], lanes[INVERSE, row], lanes[SHIFT, row], top))


@numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def search(
    strip: Any, importance: Any, group: Any, highest: Any, code_max: Any, spread: Any, ratios: Any, fits: Any,
    factor_ratios: Any, reaches: Any, codes: Any, scales: Any, minimums: Any, scale_codes: Any, minimum_codes: Any,
) -> None:  # fmt: skip
    """Quantize the blocks of `strip` [K, LANES], which is spoilt, with `importance` [K]; writes what `Found` describes.

    Levels of a `group` of columns go up to `highest`, both codes to `code_max`. `spread` is for the weights, see
    `_weigh`, `ratios` and `fits` for steps and offsets, `factor_ratios` for d and dmin; and for each of `reaches` the
    codes are revised so far around what they are, and d and dmin fitted once more.
    """
    groups, top = SUPER // group, ROUNDER + highest
    w = np.empty((SUPER, LANES), np.float32)
    lanes = np.empty((LANE_ROWS, LANES), np.float32)
    kept = np.empty((groups, GROUP_ROWS, LANES), np.float32)
    for block in range(strip.shape[0] // SUPER):
        first = block * SUPER
        x = strip[first : first + SUPER]
        _weigh(x, importance[first : first + SUPER], spread, lanes, w)
        for g in range(groups):
            part = slice(g * group, g * group + group)
            _search_step(x[part], w[part], top, ratios, fits, lanes, kept[g])
        _search_factor(STEP, STIFFNESS, D, SCALE_CODE, code_max, factor_ratios, lanes, kept)
        _fit_minimums(lanes, kept)
        _search_factor(MINIMUM, WEIGHT, DMIN, MINIMUM_CODE, code_max, factor_ratios, lanes, kept)
        for reach in reaches:
            for row in range(LANES):
                lanes[UNIT, row] = reciprocal(lanes[DMIN, row])
            for g in range(groups):
                part = slice(g * group, g * group + group)
                _revise(x[part], w[part], top, code_max, reach, lanes, kept[g])
            _refit(lanes, kept)
        for row in range(LANES):
            scales[block, row], minimums[block, row] = lanes[D, row], lanes[DMIN, row]
        for g in range(groups):
            part, place = slice(g * group, g * group + group), block * groups + g
            written = codes[first : first + SUPER][part]
            _store(x[part], top, lanes, kept[g], scale_codes[place], minimum_codes[place], written)

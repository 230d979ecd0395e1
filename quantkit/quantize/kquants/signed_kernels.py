"""The search for steps where there is no offset: one per block, or d times a scale code for every group of a block.

Rows lie side by side in lanes, [C, LANES], and the loops over lanes are innermost: they become vector instructions.
All is in one file because compiled kernels are kept for as long as the file that they are in does not change. What
fuses products and sums says so: the bytes do not depend on the compiler.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quantkit.quantize.blocks.levels import NEAREST
from quantkit.quantize.kquants.arithmetic import FASTMATH, ONE, ROUNDER, TWO, ZERO, fma, nearest_half, select
from quantkit.quantize.kquants.tiles import LANES

HALF = np.float32(0.5)
# What is smaller counts as 0: its reciprocal times a level is no longer a float32.
TINY = np.float32(1e-36)
# Columns that are visited while sums stay in registers: the smallest group.
UNROLLED = 16
# A block of the k-quants and IQ4_XS, and of the types with a step per block.
SUPER, SMALL = 256, 32
SMALLEST_HALF = np.float32(2.0**-24)


@numba.njit(forceinline=True)
def _inverse(value: Any) -> Any:
    """1 / value for either sign, or 0 where that is no number."""
    return select(abs(value) > TINY, ONE / value, ZERO)


@numba.njit(forceinline=True)
def _level(x: Any, inverse: Any, lowest: Any, highest: Any, nearest: Any) -> Any:
    """The level nearest to x * inverse; `nearest` is as in `Levels`."""
    if nearest is None:
        return min(max(fma(x, inverse, ROUNDER), ROUNDER + lowest), ROUNDER + highest) - ROUNDER
    return NEAREST[np.uint16(nearest + np.int32((min(max(x * inverse, lowest), highest) - lowest) * TWO))]


@numba.njit(forceinline=True)
def _survey(x: Any, importance: Any, inverse: Any) -> Any:
    """Write 1 / mean square of the columns `x` [C, LANES] of every row, and return 1 / mean of their importance."""
    whole = np.float32(x.shape[0])
    inverse[:] = ZERO
    for column in range(x.shape[0]):
        for lane in range(LANES):
            inverse[lane] = fma(x[column, lane], x[column, lane], inverse[lane])
    for lane in range(LANES):
        inverse[lane] = _inverse(inverse[lane]) * whole
    total = ZERO
    if importance is not None:
        for column in range(x.shape[0]):
            total += importance[column]
    return _inverse(total) * whole


@numba.njit(forceinline=True)
def _weigh(x: Any, importance: Any, by_size: Any, inverse: Any, share: Any, w: Any) -> None:
    """Say what an error in each of the weights `x` [C, LANES] costs: `w` [C, LANES]; `inverse`, `share`: see `_survey`.

    With `importance` [C] that in parts of its mean, times sqrt(2 + x^2 / mean of x^2) if `by_size`, like ggml. Without
    it 2 + x^2 / mean: ggml weighs by x^2 alone, but what is asked for is the least error of all weights. Parts of
    means keep what follows within float32's range.
    """
    for column in range(x.shape[0]):
        part = ONE if importance is None else importance[column] * share
        for lane in range(LANES):
            size = fma(x[column, lane] * x[column, lane], inverse[lane], TWO)
            if importance is None:
                w[column, lane] = size
            else:
                w[column, lane] = part * np.sqrt(size) if by_size else part


@numba.njit(forceinline=True)
def _visit(x: Any, w: Any, inverse: Any, lowest: Any, highest: Any, nearest: Any, mixed: Any, squares: Any) -> Any:
    level = _level(x, inverse, lowest, highest, nearest)
    weighted = w * level
    return fma(weighted, x, mixed), fma(weighted, level, squares)


@numba.njit(forceinline=True)
def _visit_columns(
    x: Any, w: Any, c: Any, lane: Any, i: Any, lowest: Any, highest: Any, nearest: Any, m: Any, s: Any
) -> Any:
    """UNROLLED columns from `c` on: what is added up stays in registers."""
    m, s = _visit(x[c, lane], w[c, lane], i, lowest, highest, nearest, m, s)
    m, s = _visit(x[c + 1, lane], w[c + 1, lane], i, lowest, highest, nearest, m, s)
    m, s = _visit(x[c + 2, lane], w[c + 2, lane], i, lowest, highest, nearest, m, s)
    m, s = _visit(x[c + 3, lane], w[c + 3, lane], i, lowest, highest, nearest, m, s)
    m, s = _visit(x[c + 4, lane], w[c + 4, lane], i, lowest, highest, nearest, m, s)
    m, s = _visit(x[c + 5, lane], w[c + 5, lane], i, lowest, highest, nearest, m, s)
    m, s = _visit(x[c + 6, lane], w[c + 6, lane], i, lowest, highest, nearest, m, s)
    m, s = _visit(x[c + 7, lane], w[c + 7, lane], i, lowest, highest, nearest, m, s)
    m, s = _visit(x[c + 8, lane], w[c + 8, lane], i, lowest, highest, nearest, m, s)
    m, s = _visit(x[c + 9, lane], w[c + 9, lane], i, lowest, highest, nearest, m, s)
    m, s = _visit(x[c + 10, lane], w[c + 10, lane], i, lowest, highest, nearest, m, s)
    m, s = _visit(x[c + 11, lane], w[c + 11, lane], i, lowest, highest, nearest, m, s)
    m, s = _visit(x[c + 12, lane], w[c + 12, lane], i, lowest, highest, nearest, m, s)
    m, s = _visit(x[c + 13, lane], w[c + 13, lane], i, lowest, highest, nearest, m, s)
    m, s = _visit(x[c + 14, lane], w[c + 14, lane], i, lowest, highest, nearest, m, s)
    return _visit(x[c + 15, lane], w[c + 15, lane], i, lowest, highest, nearest, m, s)


@numba.njit(forceinline=True)
def _sums(
    x: Any, w: Any, columns: Any, inverse: Any, lowest: Any, highest: Any, nearest: Any, mixed: Any, squares: Any
) -> None:
    """Round the first `columns` of the group `x` [group, LANES] times `inverse` [LANES] to levels, and sum up.

    Writes the sums of w * level * x, `mixed` [LANES], and of w * level^2, `squares` [LANES]. A step then costs
    step^2 squares - 2 step mixed, beside the sum of w * x^2 that every step costs.
    """
    mixed[:], squares[:] = ZERO, ZERO
    for c in range(0, columns, UNROLLED):
        for lane in range(LANES):
            mixed[lane], squares[lane] = _visit_columns(
                x, w, c, lane, inverse[lane], lowest, highest, nearest, mixed[lane], squares[lane]
            )


@numba.njit(forceinline=True)
def _as_fitted(step: Any) -> Any:
    return step


@numba.njit(forceinline=True)
def _as_half(step: Any) -> Any:
    return nearest_half(step)


@numba.njit(forceinline=True)
def _search_step(
    x: Any, w: Any, ratios: Any, lowest: Any, highest: Any, nearest: Any, stored: Any,
    scratch: Any, step: Any, stiffness: Any,
) -> None:  # fmt: skip
    """Find the `step` [LANES] of the group `x` [group, LANES] that costs least, by what `w` says of an error.

    For every ratio the levels are those nearest to x * ratio / the largest x, sign included, and the step is fitted to
    them; `stored` says what becomes of it in the file. Writes the sum of w * level^2 as `stiffness` [LANES]; `scratch`
    is [5, LANES].
    """
    extreme, inverse, best, mixed, squares = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    extreme[:] = ZERO
    last = x.shape[0] - UNROLLED
    for column in range(x.shape[0]):
        for lane in range(LANES):
            value = x[column, lane]
            extreme[lane] = select(abs(value) > abs(extreme[lane]), value, extreme[lane])
    best[:], step[:], stiffness[:] = ZERO, ZERO, ZERO
    for ratio in ratios:
        for lane in range(LANES):
            inverse[lane] = _inverse(extreme[lane]) * ratio
        _sums(x, w, last, inverse, lowest, highest, nearest, mixed, squares)
        # The last columns here, with what follows from the sums: in a loop of its own that takes a fourth of the time.
        for lane in range(LANES):
            i, m, s = inverse[lane], mixed[lane], squares[lane]
            m, s = _visit_columns(x, w, last, lane, i, lowest, highest, nearest, m, s)
            fitted = m * _inverse(s)
            kept = stored(fitted)
            gain = fma(fitted, m, -(kept - fitted) * (kept - fitted) * s)
            better = gain > best[lane]
            best[lane] = select(better, gain, best[lane])
            step[lane] = select(better, kept, step[lane])
            stiffness[lane] = select(better, s, stiffness[lane])


@numba.njit(forceinline=True)
def _store(x: Any, step: Any, lowest: Any, highest: Any, nearest: Any, code_of: Any, inverse: Any, codes: Any) -> None:
    """Write the `codes` [group, LANES] of `x` on the final `step` [LANES]; `code_of` is as in `Levels`."""
    for lane in range(LANES):
        inverse[lane] = _inverse(step[lane])
    for column in range(x.shape[0]):
        for lane in range(LANES):
            place = np.int32(_level(x[column, lane], inverse[lane], lowest, highest, nearest) - lowest)
            codes[column, lane] = place if nearest is None else code_of[np.uint16(place)]


@numba.njit(forceinline=True)
def _code(step: Any, inverse: Any, lowest: Any, highest: Any) -> Any:
    """The scale code that brings a step closest, `inverse` being 1 / d."""
    return min(max(np.rint(step * inverse), lowest), highest)


@numba.njit(forceinline=True)
def _cost(step: Any, mixed: Any, squares: Any) -> Any:
    """What a step costs, but for what every step costs; see `_sums`."""
    return step * fma(step, squares, -TWO * mixed)


@numba.njit(forceinline=True)
def _fit_d(steps: Any, stiffness: Any, lowest: Any, highest: Any, divisors: Any, scratch: Any, d: Any) -> None:
    """Find the float16 `d` [LANES] with whose multiples one comes closest to `steps` [G, LANES], by their stiffness.

    For every divisor the codes are those with which the largest step gets that code, and d is fitted to them.
    """
    largest, inverse, best, mixed, squares = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    largest[:], best[:], d[:] = ZERO, ZERO, ZERO
    for group in range(steps.shape[0]):
        for lane in range(LANES):
            step = steps[group, lane]
            largest[lane] = select(abs(step) > abs(largest[lane]), step, largest[lane])
    for divisor in divisors:
        for lane in range(LANES):
            inverse[lane] = _inverse(largest[lane]) * divisor
        mixed[:], squares[:] = ZERO, ZERO
        for group in range(steps.shape[0]):
            for lane in range(LANES):
                code = _code(steps[group, lane], inverse[lane], lowest, highest)
                weighted = stiffness[group, lane] * code
                mixed[lane] = fma(weighted, steps[group, lane], mixed[lane])
                squares[lane] = fma(weighted, code, squares[lane])
        for lane in range(LANES):
            fitted = mixed[lane] * _inverse(squares[lane])
            # Where d would be nothing in float16, a code below the one that was meant is still better than 0.
            size = nearest_half(max(abs(fitted), SMALLEST_HALF))
            stored = select(fitted < ZERO, -size, size)
            gain = fma(fitted, mixed[lane], -(stored - fitted) * (stored - fitted) * squares[lane])
            better = gain > best[lane]
            best[lane] = select(better, gain, best[lane])
            d[lane] = select(better, stored, d[lane])


@numba.njit(forceinline=True)
def _refine_codes(
    x: Any, w: Any, lowest: Any, highest: Any, nearest: Any, scale_lowest: Any, scale_highest: Any,
    reach: Any, d: Any, step: Any, scratch: Any, code: Any, mixed: Any, squares: Any,
) -> None:  # fmt: skip
    """Find the best scale `code` [LANES] of a group for this `d`; write what it is judged by, see `_sums`.

    Levels are those of the `reach` codes on either side of `step`, and for each the code that suits them best is tried.
    """
    below, inverse, best, m, s = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    for lane in range(LANES):
        below[lane] = np.floor(step[lane] * _inverse(d[lane]))
    best[:] = np.float32(np.inf)
    for move in range(1 - reach, reach + 1):
        for lane in range(LANES):
            near = min(max(below[lane] + np.float32(move), scale_lowest), scale_highest)
            inverse[lane] = _inverse(d[lane] * near)
        _sums(x, w, x.shape[0], inverse, lowest, highest, nearest, m, s)
        for lane in range(LANES):
            tried = _code(m[lane], _inverse(s[lane] * d[lane]), scale_lowest, scale_highest)
            cost = _cost(d[lane] * tried, m[lane], s[lane])
            better = cost < best[lane]
            best[lane] = select(better, cost, best[lane])
            code[lane] = select(better, tried, code[lane])
            mixed[lane] = select(better, m[lane], mixed[lane])
            squares[lane] = select(better, s[lane], squares[lane])


@numba.njit(forceinline=True)
def _refit_d(codes: Any, mixed: Any, squares: Any, scratch: Any, d: Any) -> None:
    """Fit `d` [LANES] once more, to the levels of all groups; float16 takes it only where the cost falls."""
    m, s = scratch[0], scratch[1]
    m[:], s[:] = ZERO, ZERO
    for group in range(codes.shape[0]):
        for lane in range(LANES):
            code = codes[group, lane]
            m[lane] = fma(code, mixed[group, lane], m[lane])
            s[lane] = fma(code * code, squares[group, lane], s[lane])
    for lane in range(LANES):
        fitted = nearest_half(m[lane] * _inverse(s[lane]))
        better = _cost(fitted, m[lane], s[lane]) < _cost(d[lane], m[lane], s[lane])
        d[lane] = select(better, fitted, d[lane])


@numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def search(
    strip: Any, importance: Any, by_size: Any, group: Any, lowest: Any, highest: Any, nearest: Any, code_of: Any,
    scale_lowest: Any, scale_highest: Any, ratios: Any, divisors: Any, reach: Any,
    codes: Any, scales: Any, scale_codes: Any,
) -> None:  # fmt: skip
    """Find levels, scale codes and d of the rows in `strip` [K, LANES].

    `importance` [K] or None and `by_size` are for `_weigh`, levels (`lowest` to `code_of`) as in `Levels`; `ratios` are
    for `_search_step`, `divisors` the scale codes that the largest step of a block may get, `reach` says how far from
    the nearest one a scale code is looked for. Writes `codes` [K, LANES], `scales` [K / SUPER, LANES] and `scale_codes`
    [K / group, LANES].
    """
    groups = SUPER // group
    w = np.empty((SUPER, LANES), np.float32)
    scratch = np.empty((5, LANES), np.float32)
    steps, stiffness = np.empty((groups, LANES), np.float32), np.empty((groups, LANES), np.float32)
    found, mixed = np.empty((groups, LANES), np.float32), np.empty((groups, LANES), np.float32)
    for block in range(strip.shape[0] // SUPER):
        columns = slice(block * SUPER, block * SUPER + SUPER)
        x, d = strip[columns], scales[block]
        matters = None if importance is None else importance[columns]
        share = _survey(x, matters, scratch[0])
        _weigh(x, matters, by_size, scratch[0], share, w)
        for g in range(groups):
            part = slice(g * group, g * group + group)
            _search_step(
                x[part], w[part], ratios, lowest, highest, nearest, _as_fitted, scratch, steps[g], stiffness[g]
            )
        _fit_d(steps, stiffness, scale_lowest, scale_highest, divisors, scratch, d)
        for g in range(groups):
            part = slice(g * group, g * group + group)
            _refine_codes(
                x[part], w[part], lowest, highest, nearest, scale_lowest, scale_highest, reach, d, steps[g],
                scratch, found[g], mixed[g], stiffness[g],
            )  # fmt: skip
        _refit_d(found, mixed, stiffness, scratch, d)
        for g in range(groups):
            part = slice(block * SUPER + g * group, block * SUPER + g * group + group)
            for lane in range(LANES):
                steps[g, lane] = d[lane] * found[g, lane]
                scale_codes[block * groups + g, lane] = np.int8(found[g, lane])
            _store(strip[part], steps[g], lowest, highest, nearest, code_of, scratch[0], codes[part])


@numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def search_blocks(
    strip: Any, importance: Any, lowest: Any, highest: Any, nearest: Any, code_of: Any, ratios: Any,
    codes: Any, scales: Any,
) -> None:  # fmt: skip
    """As `search`, for types whose step is d itself: writes `codes` [K, LANES] and `scales` [K / SMALL, LANES]."""
    w = np.empty((SMALL, LANES), np.float32)
    scratch = np.empty((5, LANES), np.float32)
    stiffness = np.empty(LANES, np.float32)
    for block in range(strip.shape[0] // SMALL):
        columns = slice(block * SMALL, block * SMALL + SMALL)
        x, d = strip[columns], scales[block]
        matters = None if importance is None else importance[columns]
        share = _survey(x, matters, scratch[0])
        _weigh(x, matters, True, scratch[0], share, w)
        _search_step(x, w, ratios, lowest, highest, nearest, _as_half, scratch, d, stiffness)
        _store(x, d, lowest, highest, nearest, code_of, scratch[0], codes[columns])


@numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def round_blocks(strip: Any, lowest: Any, highest: Any, codes: Any, scales: Any) -> None:
    """Round blocks to the step with which the level `highest` reaches the largest weight, as ggml does for Q8_0.

    Half a step is rounded away from 0, and with the step that float16 has not rounded yet: the same bytes.
    """
    inverse = np.empty(LANES, np.float32)
    for block in range(strip.shape[0] // SMALL):
        d = scales[block]
        d[:] = ZERO
        for column in range(block * SMALL, block * SMALL + SMALL):
            for lane in range(LANES):
                d[lane] = max(d[lane], abs(strip[column, lane]))
        for lane in range(LANES):
            step = d[lane] / highest
            inverse[lane] = _inverse(step)
            d[lane] = nearest_half(step)
        for column in range(block * SMALL, block * SMALL + SMALL):
            for lane in range(LANES):
                value = strip[column, lane] * inverse[lane]
                whole = np.trunc(value)
                away = select(abs(value - whole) >= HALF, select(value < ZERO, -ONE, ONE), ZERO)
                codes[column, lane] = np.int32(whole + away - lowest)

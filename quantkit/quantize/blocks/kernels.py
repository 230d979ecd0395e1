"""The loops of grid search and of rounding with feedback, compiled: rows side by side in vector registers.

Columns are rows of the arrays here, [C, N], so that what is computed for many rows of the matrix lies side by side.
The underscored functions take fastmath and error model from the kernel they are inlined into.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

# Rows of the matrix that go through a group together: their part of it stays in the first-level cache.
TILE = 128
# Sums may be reordered and fused. NaN and infinities are still honoured. A step times a level is exact in float32, so
# fusing it with the subtraction of the offset changes nothing.
RELAXED = {"reassoc", "contract", "nsz"}
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)


@numba.njit(forceinline=True, fastmath=False)
def _reciprocal(step: Any) -> Any:
    # Under RELAXED, multiplications by it could become divisions, at half the speed.
    return ONE / step if step != ZERO else ZERO


@numba.njit(forceinline=True)
def _nearest(value: Any, lowest: Any, highest: Any, nearest: Any) -> Any:
    """The level nearest to `value`; `nearest` is None where all integers from `lowest` to `highest` are levels."""
    if nearest is None:
        return min(max(np.rint(value), lowest), highest)
    return nearest[np.uint32((min(max(value, lowest), highest) - lowest) * TWO)]


@numba.njit(nogil=True, cache=True, fastmath=RELAXED, error_model="numpy")
def search_steps(
    targets: Any,
    cost: Any,
    group: Any,
    ratios: Any,
    lowest: Any,
    highest: Any,
    nearest: Any,
    steps: Any,
    stiffness: Any,
) -> None:
    """Find the step of every group with the least sum of cost * (target - step * level)^2, without offsets.

    `targets` [C, N], `cost` [C]; for every ratio the levels are those nearest to target / max |target| * ratio, and the
    step is then fitted to them. Writes `steps` [C / group, N] and the sum of cost * level^2 as `stiffness`.
    """
    columns, rows = targets.shape
    largest, inverse, best = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    mixed, squares = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for first in range(0, rows, TILE):
        count = min(TILE, rows - first)
        for place in range(columns // group):
            begin, end = place * group, place * group + group
            largest[:] = ZERO
            for column in range(begin, end):
                for row in range(count):
                    largest[row] = max(largest[row], abs(targets[column, first + row]))
            for row in range(count):
                best[row] = -ONE
                inverse[row] = _reciprocal(largest[row])
            for ratio in ratios:
                mixed[:] = ZERO
                squares[:] = ZERO
                for column in range(begin, end):
                    weight = cost[column]
                    for row in range(count):
                        target = targets[column, first + row]
                        level = _nearest(target * inverse[row] * ratio, lowest, highest, nearest)
                        mixed[row] += weight * level * target
                        squares[row] += weight * level * level
                for row in range(count):
                    step = mixed[row] * _reciprocal(squares[row])
                    if step * mixed[row] > best[row]:
                        best[row] = step * mixed[row]
                        steps[place, first + row] = step
                        stiffness[place, first + row] = squares[row]


@numba.njit(nogil=True, cache=True, fastmath=RELAXED, error_model="numpy")
def search_steps_and_offsets(
    targets: Any, cost: Any, group: Any, ratios: Any, highest: Any, steps: Any, offsets: Any, stiffness: Any
) -> None:
    """Find step and offset >= 0 of every group with the least sum of cost * (target - step * level + offset)^2.

    As `search_steps`, with levels from 0 to `highest` that count from the smallest target (or 0): for every ratio they
    are those nearest to (target - smallest) / span * ratio. `cost` must not be 0 for all of a group.
    """
    columns, rows = targets.shape
    low, inverse, best = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    high, plain = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    mixed, squares, sums = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for first in range(0, rows, TILE):
        count = min(TILE, rows - first)
        for place in range(columns // group):
            begin, end = place * group, place * group + group
            whole = ZERO
            low[:], high[:], plain[:] = ZERO, ZERO, ZERO
            for column in range(begin, end):
                weight = cost[column]
                whole += weight
                for row in range(count):
                    target = targets[column, first + row]
                    low[row], high[row] = min(low[row], target), max(high[row], target)
                    plain[row] += weight * target
            for row in range(count):
                best[row] = -ONE
                inverse[row] = _reciprocal(high[row] - low[row])
                steps[place, first + row] = ZERO
                offsets[place, first + row] = ZERO
                stiffness[place, first + row] = ZERO
            for ratio in ratios:
                mixed[:], squares[:], sums[:] = ZERO, ZERO, ZERO
                for column in range(begin, end):
                    weight = cost[column]
                    for row in range(count):
                        target = targets[column, first + row]
                        level = np.rint((target - low[row]) * inverse[row] * ratio)
                        level = min(max(level, ZERO), highest)
                        mixed[row] += weight * level * target
                        squares[row] += weight * level * level
                        sums[row] += weight * level
                for row in range(count):
                    # The least squares of both, or of the step alone where the offset would be negative.
                    scale = _reciprocal(whole * squares[row] - sums[row] * sums[row])
                    step = (whole * mixed[row] - plain[row] * sums[row]) * scale
                    offset = (sums[row] * mixed[row] - squares[row] * plain[row]) * scale
                    if offset < ZERO or scale <= ZERO:
                        offset = ZERO
                        step = mixed[row] * _reciprocal(squares[row])
                    gain = step * mixed[row] - offset * plain[row]  # what the squares fall by
                    if gain > best[row] and step > ZERO:
                        best[row] = gain
                        steps[place, first + row] = step
                        offsets[place, first + row] = offset
                        stiffness[place, first + row] = squares[row]


@numba.njit(forceinline=True)
def _round_tile(
    targets: Any,
    originals: Any,
    factors: Any,
    cost: Any,
    tile: Any,
    steps: Any,
    offsets: Any,
    lowest: Any,
    highest: Any,
    nearest: Any,
    scratch: Any,
    values: Any,
    levels: Any,
    losses: Any,
) -> None:
    """Round all columns of a tile in turn with its `steps` and `offsets` [TILE]; sum up cost * error^2 in `losses`.

    `tile` is its first row and how many it has; `scratch` [C + 2, TILE].
    """
    first, count = tile
    wanted, inverse, errors = scratch[0], scratch[1], scratch[2:]
    for row in range(count):
        losses[row] = ZERO
        inverse[row] = _reciprocal(steps[row])
    for column in range(len(cost)):
        for row in range(count):
            wanted[row] = targets[column, first + row]
        for earlier in range(column):
            factor = factors[column, earlier]
            for row in range(count):
                wanted[row] += factor * errors[earlier, row]
        weight = cost[column]
        for row in range(count):
            level = _nearest((wanted[row] + offsets[row]) * inverse[row], lowest, highest, nearest)
            value = steps[row] * level - offsets[row]
            rest = wanted[row] - value
            losses[row] += weight * rest * rest
            errors[column, row] = originals[column, first + row] - value
            values[column, row] = value
            levels[column, row] = level


@numba.njit(nogil=True, cache=True, fastmath=RELAXED, error_model="numpy")
def round_group(
    targets: Any,
    originals: Any,
    factors: Any,
    cost: Any,
    steps: Any,
    offsets: Any,
    lowest: Any,
    highest: Any,
    nearest: Any,
    values: Any,
    levels: Any,
    chosen: Any,
    losses: Any,
) -> None:
    """Round the columns of one group with feedback among them, on the best of some steps and of some offsets.

    `targets` and `originals` [C, N]: with the feedback of all earlier columns, and without any; `factors` [C, C] hold
    in row j what column j takes from those before it. Every row of the matrix takes the one of its `steps` [S, N] with
    which the sum of `cost` [C] times squared errors, feedback included, is the least beside the first offset, and then
    the best of its `offsets` [M, N]. Writes `values` = step * level - offset and `levels` [C, N], the places of the
    `chosen` step and offset [2, N], and the sums as `losses` [N].
    """
    columns, rows = targets.shape
    trial_values, trial_levels = np.empty((columns, TILE), np.float32), np.empty((columns, TILE), np.float32)
    scratch = np.empty((columns + 2, TILE), np.float32)
    step, offset = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    loss, best = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    many = len(steps)
    last = many + len(offsets) - 1  # the trial after all others: what was best, once more
    for first in range(0, rows, TILE):
        tile = first, min(TILE, rows - first)
        for row in range(tile[1]):
            chosen[0, first + row], chosen[1, first + row] = 0, 0
            best[row] = np.float32(np.inf)
        for trial in range(last + 1):
            for row in range(tile[1]):
                step_place = trial if trial < many else chosen[0, first + row]
                offset_place = trial - many + 1 if many <= trial < last else chosen[1, first + row]
                step[row], offset[row] = steps[step_place, first + row], offsets[offset_place, first + row]
            _round_tile(
                targets, originals, factors, cost, tile, step, offset, lowest, highest, nearest, scratch,
                trial_values, trial_levels, loss,
            )  # fmt: skip
            for row in range(tile[1]):
                if loss[row] < best[row] and trial < last:
                    best[row] = loss[row]
                    if trial < many:
                        chosen[0, first + row] = trial
                    else:
                        chosen[1, first + row] = trial - many + 1
        for row in range(tile[1]):
            losses[first + row] = loss[row]
        for column in range(columns):
            for row in range(tile[1]):
                values[column, first + row] = trial_values[column, row]
                levels[column, first + row] = trial_levels[column, row]

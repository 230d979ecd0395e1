"""The loops of grid search and of rounding with feedback, compiled: rows side by side in vector registers.

Columns are rows of the arrays here, [C, N], so that what is computed for many rows of the matrix lies side by side.
A tile of them is copied before it is worked on: with a fixed length, and indices that cannot be negative, the compiler
needs neither gathers nor a second loop for what is left over. Behind the last row a tile holds anything.
The underscored functions take fastmath and error model from the kernel they are inlined into.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quantkit.quantize.blocks.levels import NEAREST

# Rows of the matrix that go through a group together: their part of it stays close to the processor, 128 KiB for groups
# of 32, and loops are long enough for what precedes them not to count.
TILE = 256
# Products and sums may be fused, in the order in which they are written. A step times a level is exact in float32, so
# fusing it with the subtraction of the offset changes nothing.
FUSED = {"contract", "nsz"}
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)


@numba.njit(forceinline=True)
def _reciprocal(step: Any) -> Any:
    return ONE / step if step != ZERO else ZERO


@numba.njit(forceinline=True)
def _nearest(value: Any, lowest: Any, highest: Any, nearest: Any) -> Any:
    """The level nearest to `value`; `nearest` is as in `Levels`."""
    if nearest is None:
        return min(max(np.rint(value), lowest), highest)
    return NEAREST[np.uint16(nearest + np.int32((min(max(value, lowest), highest) - lowest) * TWO))]


@numba.njit(forceinline=True)
def _load(source: Any, columns: Any, first: Any, tile: Any) -> Any:
    """Copy rows of the matrix from `first` on, of `columns` of `source` [C, N], to `tile` [columns, TILE]."""
    count = min(TILE, source.shape[1] - first)
    for column in range(tile.shape[0]):
        part = source[columns + column, first : first + count]
        for row in range(count):
            tile[column, row] = part[row]


@numba.njit(nogil=True, cache=True, fastmath=FUSED, error_model="numpy")
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
    tile = np.zeros((group, TILE), np.float32)
    largest, inverse, best = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    mixed, squares = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    found = np.empty((2, TILE), np.float32)
    for first in range(0, rows, TILE):
        count = min(TILE, rows - first)
        for place in range(columns // group):
            _load(targets, place * group, first, tile)
            largest[:] = ZERO
            for column in range(group):
                for row in range(TILE):
                    largest[row] = max(largest[row], abs(tile[column, row]))
            for row in range(TILE):
                best[row] = -ONE
                inverse[row] = _reciprocal(largest[row])
            found[:] = ZERO
            for ratio in ratios:
                mixed[:] = ZERO
                squares[:] = ZERO
                for column in range(group):
                    weight = cost[place * group + column]
                    for row in range(TILE):
                        target = tile[column, row]
                        level = _nearest(target * ratio * inverse[row], lowest, highest, nearest)
                        mixed[row] += weight * level * target
                        squares[row] += weight * level * level
                for row in range(TILE):
                    step = mixed[row] * _reciprocal(squares[row])
                    gain = step * mixed[row]
                    if gain > best[row]:
                        best[row] = gain
                        found[0, row] = step
                        found[1, row] = squares[row]
            steps[place, first : first + count] = found[0, :count]
            stiffness[place, first : first + count] = found[1, :count]


@numba.njit(nogil=True, cache=True, fastmath=FUSED, error_model="numpy")
def search_steps_and_offsets(
    targets: Any, cost: Any, group: Any, ratios: Any, highest: Any, steps: Any, offsets: Any, stiffness: Any
) -> None:
    """Find step and offset >= 0 of every group with the least sum of cost * (target - step * level + offset)^2.

    As `search_steps`, with levels from 0 to `highest` that count from the smallest target (or 0): for every ratio they
    are those nearest to (target - smallest) / span * ratio. `cost` must not be 0 for all of a group.
    """
    columns, rows = targets.shape
    tile = np.zeros((group, TILE), np.float32)
    low, inverse, best = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    high, plain = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    mixed, squares, sums = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    found = np.empty((3, TILE), np.float32)
    for first in range(0, rows, TILE):
        count = min(TILE, rows - first)
        for place in range(columns // group):
            _load(targets, place * group, first, tile)
            whole = ZERO
            low[:], high[:], plain[:] = ZERO, ZERO, ZERO
            for column in range(group):
                weight = cost[place * group + column]
                whole += weight
                for row in range(TILE):
                    target = tile[column, row]
                    low[row], high[row] = min(low[row], target), max(high[row], target)
                    plain[row] += weight * target
            for row in range(TILE):
                best[row] = -ONE
                inverse[row] = _reciprocal(high[row] - low[row])
            found[:] = ZERO
            for ratio in ratios:
                mixed[:], squares[:], sums[:] = ZERO, ZERO, ZERO
                for column in range(group):
                    weight = cost[place * group + column]
                    for row in range(TILE):
                        target = tile[column, row]
                        level = np.rint((target - low[row]) * (inverse[row] * ratio))
                        level = min(max(level, ZERO), highest)
                        mixed[row] += weight * level * target
                        squares[row] += weight * level * level
                        sums[row] += weight * level
                for row in range(TILE):
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
                        found[0, row] = step
                        found[1, row] = offset
                        found[2, row] = squares[row]
            steps[place, first : first + count] = found[0, :count]
            offsets[place, first : first + count] = found[1, :count]
            stiffness[place, first : first + count] = found[2, :count]


@numba.njit(forceinline=True)
def _round_tile(
    targets: Any,
    originals: Any,
    factors: Any,
    cost: Any,
    step: Any,
    offset: Any,
    lowest: Any,
    highest: Any,
    nearest: Any,
    scratch: Any,
    errors: Any,
    levels: Any,
    losses: Any,
) -> None:
    """Round the columns of a tile [C, TILE] in turn with its `step` and `offset`; sum up cost * error^2 in `losses`.

    Writes `errors` = original - rounded and `levels`, [C, TILE]; `scratch` [2, TILE].
    """
    wanted, inverse = scratch[0], scratch[1]
    for row in range(TILE):
        losses[row] = ZERO
        inverse[row] = _reciprocal(step[row])
    for column in range(len(cost)):
        for row in range(TILE):
            wanted[row] = targets[column, row]
        together = column - column % 4  # four at a time, to load and store the sum less often
        for earlier in range(0, together, 4):
            one, two = factors[column, earlier], factors[column, earlier + 1]
            three, four = factors[column, earlier + 2], factors[column, earlier + 3]
            for row in range(TILE):
                total = wanted[row] + one * errors[earlier, row] + two * errors[earlier + 1, row]
                wanted[row] = total + three * errors[earlier + 2, row] + four * errors[earlier + 3, row]
        for earlier in range(together, column):
            factor = factors[column, earlier]
            for row in range(TILE):
                wanted[row] += factor * errors[earlier, row]
        weight = cost[column]
        for row in range(TILE):
            level = _nearest((wanted[row] + offset[row]) * inverse[row], lowest, highest, nearest)
            value = step[row] * level - offset[row]
            rest = wanted[row] - value
            losses[row] += weight * (rest * rest)
            errors[column, row] = originals[column, row] - value
            levels[column, row] = level


@numba.njit(forceinline=True)
def _keep_better(loss: Any, best: Any, tried: Any, taken: Any, number: Any) -> None:
    """In rows that lose less than with the `best` so far, take what is `tried` [tried and best, TILE], and `number`."""
    for row in range(TILE):
        if loss[row] < best[row]:
            best[row], tried[1, row], taken[row] = loss[row], tried[0, row], number


@numba.njit(forceinline=True, fastmath=False)
def _squared_lengths(columns: Any, first: Any, lengths: Any) -> None:
    """Squared lengths of `columns` [C, N] in a tile's rows from `first` on; as torch's norm rounds them, squared."""
    count = min(TILE, columns.shape[1] - first)
    lengths[:] = ZERO
    for column in range(columns.shape[0]):
        part = columns[column, first : first + count]
        for row in range(count):
            lengths[row] += part[row] * part[row]
    for row in range(TILE):
        length = np.sqrt(lengths[row])
        lengths[row] = length * length


@numba.njit(forceinline=True)
def _store(
    levels: Any,
    missed: Any,
    step: Any,
    offset: Any,
    lowest: Any,
    loss: Any,
    allowed: Any,
    values: Any,
    places: Any,
    errors: Any,
) -> None:
    """Put a tile's column where it belongs; see `round_group`. `allowed` is None where nothing was there before."""
    for row in range(len(values)):
        value = step[row] * levels[row] - offset[row]
        place = np.uint8(np.int32(levels[row] - lowest))
        if allowed is None:
            values[row], places[row], errors[row] = value, place, missed[row]
        else:
            old, less = values[row], loss[row] < allowed[row]
            kept = value if less else old
            values[row], places[row], errors[row] = kept, place if less else places[row], old - kept


@numba.njit(nogil=True, cache=True, fastmath=FUSED, error_model="numpy")
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
    present: Any,
    values: Any,
    places: Any,
    chosen: Any,
    errors: Any,
) -> None:
    """Round the columns of one group with feedback among them, on the best of some steps and of some offsets.

    `targets` and `originals` [C, N]: with the feedback of all earlier columns, and without any; `factors` [C, C] hold
    in row j what column j takes from those before it. Every row of the matrix takes the one of its `steps` [S, N] with
    which the sum of `cost` [C] times squared errors, feedback included, is the least beside the first offset, and then
    the best of its `offsets` [M, N]. Writes `values` = step * level - offset and the levels' `places` from the lowest
    one up, uint8, both [C, N], the numbers of the `chosen` step and offset [2, N], and `errors` = original - value.

    With `present` [C, N], whose squares sum up to what the `values` so far lose, only rows that will lose less change,
    others choose the first step and offset, and `errors` are what new values are short of the old ones.
    """
    columns, rows = targets.shape
    wanted, unspoilt = np.zeros((columns, TILE), np.float32), np.zeros((columns, TILE), np.float32)
    missed, levels = np.zeros((columns, TILE), np.float32), np.zeros((columns, TILE), np.float32)
    scratch = np.zeros((2, TILE), np.float32)
    step, offset = np.zeros((2, TILE), np.float32), np.zeros((2, TILE), np.float32)
    loss, best, allowed = np.zeros(TILE, np.float32), np.zeros(TILE, np.float32), np.zeros(TILE, np.float32)
    taken = np.zeros((2, TILE), np.int32)
    many = len(steps)
    last = many + len(offsets) - 1  # the trial after all others: what was best, once more
    for first in range(0, rows, TILE):
        count = min(TILE, rows - first)
        behind = first + count
        _load(targets, 0, first, wanted)
        _load(originals, 0, first, unspoilt)
        step[1, :count] = steps[0, first:behind]
        offset[1, :count] = offsets[0, first:behind]
        best[:] = np.float32(np.inf)
        taken[:] = 0
        for trial in range(last + 1):
            step[0], offset[0] = step[1], offset[1]
            if trial < many:
                step[0, :count] = steps[trial, first:behind]
            elif trial < last:
                offset[0, :count] = offsets[trial - many + 1, first:behind]
            _round_tile(
                wanted, unspoilt, factors, cost, step[0], offset[0], lowest, highest, nearest, scratch, missed, levels,
                loss,
            )  # fmt: skip
            if trial < many:
                _keep_better(loss, best, step, taken[0], trial)
            elif trial < last:
                _keep_better(loss, best, offset, taken[1], trial - many + 1)
        if present is not None:
            _squared_lengths(present, first, allowed)
            taken *= loss < allowed
        chosen[:, first:behind] = taken[:, :count]
        for column in range(columns):
            _store(
                levels[column], missed[column], step[0], offset[0], lowest, loss,
                None if present is None else allowed, values[column, first:behind], places[column, first:behind],
                errors[column, first:behind],
            )  # fmt: skip

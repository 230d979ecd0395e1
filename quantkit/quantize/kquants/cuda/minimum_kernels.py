"""The search of Q2_K, Q4_K and Q5_K: step and offset of every group, d and dmin of every block.

What is computed, and why, is said where it is done on the CPU, in `kquants.minimum_kernels`; here it is cut where lanes
change from groups to blocks and back. `kept` [FIELDS, K / group, R] holds what is known of groups, `factors`
[2, K / 256, R] d and dmin.
"""

from __future__ import annotations

import triton
import triton.language as tl

from quantkit.quantize.kquants import minimum_kernels
from quantkit.quantize.kquants.cuda.arithmetic import ROUNDER, nearest_code, nearest_half, reciprocal

SUPER = tl.constexpr(256)
NOISE = tl.constexpr(float(minimum_kernels.NOISE))
# Fields of `kept`: sums of the best pass, what no level changes, what is fitted, codes.
MIXED, SQUARES, LEVELS, WEIGHT, PLAIN, LOWEST = (tl.constexpr(field) for field in range(6))
STEP, MINIMUM, STIFFNESS, SCALE_CODE, MINIMUM_CODE = (tl.constexpr(field) for field in range(6, 11))
FIELDS = 11


@triton.jit
def level_of(value: tl.tensor, inverse: tl.tensor, shift: tl.tensor, highest: tl.tensor) -> tl.tensor:
    """The level nearest to value * inverse + shift, from 0 to `highest`."""
    return tl.minimum(tl.maximum(tl.fma(value, inverse, shift) + ROUNDER, ROUNDER), highest + ROUNDER) - ROUNDER


@triton.jit
def sums_of(
    x: tl.tensor, w: tl.tensor, at: tl.tensor, here: tl.tensor, rows: tl.tensor, lowest: tl.tensor, inverse: tl.tensor,
    shift: tl.tensor, highest: tl.tensor, GROUP: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Round a group less its `lowest`, with `inverse` and `shift`: the sums of w * q * x, w * q * q and w * q."""
    mixed = tl.zeros_like(inverse)
    squares = tl.zeros_like(inverse)
    levels = tl.zeros_like(inverse)
    for column in tl.range(0, GROUP, loop_unroll_factor=8):
        value = tl.load(x + at + column * rows, mask=here, other=0.0) - lowest
        level = level_of(value, inverse, shift, highest)
        weighted = tl.load(w + at + column * rows, mask=here, other=0.0) * level
        mixed = tl.fma(weighted, value, mixed)
        squares = tl.fma(weighted, level, squares)
        levels = levels + weighted
    return mixed, squares, levels


@triton.jit
def gain_of(
    step: tl.tensor, offset: tl.tensor, mixed: tl.tensor, squares: tl.tensor, levels: tl.tensor, weight: tl.tensor,
    plain: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """What the error falls by from that of step 0 and offset 0."""
    by_step = step * (2.0 * tl.fma(offset, levels, mixed) - step * squares)
    return by_step - offset * tl.fma(offset, weight, 2.0 * plain)


@triton.jit
def offset_of(step: tl.tensor, levels: tl.tensor, weight: tl.tensor, plain: tl.tensor) -> tl.tensor:
    """The offset that suits a step, from the sums over a group."""
    return (step * levels - plain) * reciprocal(weight)


@triton.jit
def survey(
    x: tl.tensor, w: tl.tensor, at: tl.tensor, here: tl.tensor, rows: tl.tensor, GROUP: tl.constexpr,
    LANES: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The lowest weight of a group, if it is negative, the highest above it, and the sums that no level changes."""
    lowest = tl.zeros([LANES], tl.float32)
    for column in range(GROUP):
        lowest = tl.minimum(lowest, tl.load(x + at + column * rows, mask=here, other=0.0))
    span = tl.zeros([LANES], tl.float32)
    weight, plain = span, span
    for column in range(GROUP):
        value = tl.load(x + at + column * rows, mask=here, other=0.0) - lowest
        each = tl.load(w + at + column * rows, mask=here, other=0.0)
        span = tl.maximum(span, value)
        plain = tl.fma(each, value, plain)
        weight += each
    return lowest, span, weight, plain


@triton.jit
def fit(
    mixed: tl.tensor, squares: tl.tensor, levels: tl.tensor, weight: tl.tensor, plain: tl.tensor, lowest: tl.tensor
) -> tl.tensor:
    """The step that suits the sums of a pass, what an error of it costs, and what is gained with it."""
    mean = levels * reciprocal(weight)
    stiffness = squares - mean * levels
    stiffness = tl.where(stiffness > squares * NOISE, stiffness, 0.0)
    step = (mixed - mean * plain) * reciprocal(stiffness)
    offset = offset_of(step, levels, weight, plain)
    alone = (offset < lowest) | (stiffness == 0.0)
    stiffness = tl.where(alone, squares, stiffness)
    step = tl.where(alone, tl.fma(lowest, levels, mixed) * reciprocal(squares), step)
    offset = tl.where(alone, lowest, offset)
    return step, stiffness, gain_of(step, offset, mixed, squares, levels, weight, plain)


@triton.jit
def search_steps(
    x: tl.tensor, w: tl.tensor, ratios: tl.tensor, kept: tl.tensor, lanes: tl.tensor, rows: tl.tensor,
    highest: tl.tensor, TRIES: tl.constexpr, FITS: tl.constexpr, GROUP: tl.constexpr, LANES: tl.constexpr,
) -> None:  # fmt: skip
    """Per group: the best step, of as many tries as there are ratios, and of FITS to what was best."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    here = lane < lanes
    at = lane // rows * (GROUP * rows) + lane % rows
    lowest, span, weight, plain = survey(x, w, at, here, rows, GROUP, LANES)
    best = tl.zeros([LANES], tl.float32)
    best_mixed, best_squares, best_levels, best_step, best_stiffness = best, best, best, best, best
    for number in range(TRIES + FITS):
        if number < TRIES:
            inverse = reciprocal(span) * tl.load(ratios + number)
            shift = tl.zeros([LANES], tl.float32)
        else:
            inverse = reciprocal(best_step)
            shift = tl.maximum(offset_of(best_step, best_levels, weight, plain), lowest) * inverse
        mixed, squares, levels = sums_of(x, w, at, here, rows, lowest, inverse, shift, highest, GROUP)
        step, stiffness, gain = fit(mixed, squares, levels, weight, plain, lowest)
        better = (gain > best) & (step > 0.0)
        best = tl.where(better, gain, best)
        best_mixed = tl.where(better, mixed, best_mixed)
        best_squares = tl.where(better, squares, best_squares)
        best_levels = tl.where(better, levels, best_levels)
        best_step = tl.where(better, step, best_step)
        best_stiffness = tl.where(better, stiffness, best_stiffness)
    spot = kept + lane
    tl.store(spot + lanes * MIXED, best_mixed, mask=here)
    tl.store(spot + lanes * SQUARES, best_squares, mask=here)
    tl.store(spot + lanes * LEVELS, best_levels, mask=here)
    tl.store(spot + lanes * WEIGHT, weight, mask=here)
    tl.store(spot + lanes * PLAIN, plain, mask=here)
    tl.store(spot + lanes * LOWEST, lowest, mask=here)
    tl.store(spot + lanes * STEP, best_step, mask=here)
    tl.store(spot + lanes * STIFFNESS, best_stiffness, mask=here)


@triton.jit
def factor_of(
    wanted: tl.tensor, cost: tl.tensor, at: tl.tensor, here: tl.tensor, rows: tl.tensor, ratios: tl.tensor,
    code_max: tl.tensor, TRIES: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The float16 number whose multiples come closest to what is `wanted` of a block's groups."""
    largest = tl.zeros([LANES], tl.float32)
    for group in range(GROUPS):
        largest = tl.maximum(largest, tl.load(wanted + at + group * rows, mask=here, other=0.0))
    factor = tl.zeros([LANES], tl.float32)
    best = factor + float("inf")
    for number in range(TRIES):
        tried = nearest_half(tl.div_rn(largest, code_max * tl.load(ratios + number)))
        inverse = reciprocal(tried)
        total = tl.zeros([LANES], tl.float32)
        for group in range(GROUPS):
            value = tl.load(wanted + at + group * rows, mask=here, other=0.0)
            error = value - nearest_code(value * inverse, 0.0, code_max) * tried
            total += error * error * tl.load(cost + at + group * rows, mask=here, other=0.0)
        better = total < best
        best = tl.where(better, total, best)
        factor = tl.where(better, tried, factor)
    return factor


@triton.jit
def search_factors(
    kept: tl.tensor, factors: tl.tensor, ratios: tl.tensor, lanes: tl.tensor, rows: tl.tensor, code_max: tl.tensor,
    TRIES: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr,
) -> None:  # fmt: skip
    """Per block: d and the groups' scale codes, the minimums that suit these, and dmin."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    here = lane < lanes
    at = lane // rows * (GROUPS * rows) + lane % rows
    field = lanes * GROUPS
    wanted, cost = kept + field * STEP, kept + field * STIFFNESS
    d = factor_of(wanted, cost, at, here, rows, ratios, code_max, TRIES, GROUPS, LANES)
    inverse = reciprocal(d)
    for group in range(GROUPS):
        spot = kept + at + group * rows
        code = nearest_code(tl.load(spot + field * STEP, mask=here, other=0.0) * inverse, 0.0, code_max)
        levels = tl.load(spot + field * LEVELS, mask=here, other=0.0)
        plain = tl.load(spot + field * PLAIN, mask=here, other=0.0)
        weight = tl.load(spot + field * WEIGHT, mask=here, other=0.0)
        lowest = tl.load(spot + field * LOWEST, mask=here, other=0.0)
        tl.store(spot + field * SCALE_CODE, code, mask=here)
        minimum = tl.maximum(offset_of(d * code, levels, weight, plain) - lowest, 0.0)
        tl.store(spot + field * MINIMUM, minimum, mask=here)
    # What one thread wrote another one may read: lanes are not tied to threads.
    tl.debug_barrier()
    wanted, cost = kept + field * MINIMUM, kept + field * WEIGHT
    dmin = factor_of(wanted, cost, at, here, rows, ratios, code_max, TRIES, GROUPS, LANES)
    tl.store(factors + lane, d, mask=here)
    tl.store(factors + lanes + lane, dmin, mask=here)


@triton.jit
def revise(
    x: tl.tensor, w: tl.tensor, kept: tl.tensor, factors: tl.tensor, lanes: tl.tensor, rows: tl.tensor,
    blocks: tl.tensor, highest: tl.tensor, code_max: tl.tensor, REACH: tl.constexpr, GROUP: tl.constexpr,
    LANES: tl.constexpr,
) -> None:  # fmt: skip
    """Per group: the codes that suit d and dmin best, the scale code up to REACH and one away from what it is."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    here = lane < lanes
    at = lane // rows * (GROUP * rows) + lane % rows
    block = lane // rows // (SUPER // GROUP) * rows + lane % rows
    d = tl.load(factors + block, mask=here, other=0.0)
    dmin = tl.load(factors + blocks + block, mask=here, other=0.0)
    unit = reciprocal(dmin)
    spot = kept + lane
    present = tl.load(spot + lanes * SCALE_CODE, mask=here, other=0.0)
    plain = tl.load(spot + lanes * PLAIN, mask=here, other=0.0)
    known = tl.load(spot + lanes * LEVELS, mask=here, other=0.0)
    weight = tl.load(spot + lanes * WEIGHT, mask=here, other=0.0)
    lowest = tl.load(spot + lanes * LOWEST, mask=here, other=0.0)
    best_mixed = tl.zeros([LANES], tl.float32)
    best_squares, best_levels, best_code, best_minimum = best_mixed, best_mixed, best_mixed, best_mixed
    best = best_mixed - float("inf")
    for trial in range(-REACH, REACH + 1):
        step = d * tl.minimum(tl.maximum(present + trial, 0.0), code_max)
        minimum = nearest_code((offset_of(step, known, weight, plain) - lowest) * unit, 0.0, code_max)
        inverse = reciprocal(step)
        shift = tl.fma(dmin, minimum, lowest) * inverse
        mixed, squares, levels = sums_of(x, w, at, here, rows, lowest, inverse, shift, highest, GROUP)
        for by in range(trial - 1, trial + 2):
            code = tl.minimum(tl.maximum(present + by, 0.0), code_max)
            step = d * code
            minimum = nearest_code((offset_of(step, levels, weight, plain) - lowest) * unit, 0.0, code_max)
            gain = gain_of(step, tl.fma(dmin, minimum, lowest), mixed, squares, levels, weight, plain)
            better = gain > best
            best = tl.where(better, gain, best)
            best_code = tl.where(better, code, best_code)
            best_minimum = tl.where(better, minimum, best_minimum)
            best_mixed = tl.where(better, mixed, best_mixed)
            best_squares = tl.where(better, squares, best_squares)
            best_levels = tl.where(better, levels, best_levels)
    tl.store(spot + lanes * MIXED, best_mixed, mask=here)
    tl.store(spot + lanes * SQUARES, best_squares, mask=here)
    tl.store(spot + lanes * LEVELS, best_levels, mask=here)
    tl.store(spot + lanes * SCALE_CODE, best_code, mask=here)
    tl.store(spot + lanes * MINIMUM_CODE, best_minimum, mask=here)


@triton.jit
def refit(
    kept: tl.tensor, factors: tl.tensor, lanes: tl.tensor, rows: tl.tensor, GROUPS: tl.constexpr, LANES: tl.constexpr
) -> None:
    """Per block: d and dmin corrected to suit the codes and levels as they are, where that is better."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    here = lane < lanes
    at = lane // rows * (GROUPS * rows) + lane % rows
    field = lanes * GROUPS
    old_d = tl.load(factors + lane, mask=here, other=0.0)
    old_dmin = tl.load(factors + lanes + lane, mask=here, other=0.0)
    squares = tl.zeros([LANES], tl.float32)
    mixed, weight, steps, offsets = squares, squares, squares, squares
    for group in range(GROUPS):
        spot = kept + at + group * rows
        code = tl.load(spot + field * SCALE_CODE, mask=here, other=0.0)
        minimum = tl.load(spot + field * MINIMUM_CODE, mask=here, other=0.0)
        square = tl.load(spot + field * SQUARES, mask=here, other=0.0)
        level = tl.load(spot + field * LEVELS, mask=here, other=0.0)
        each = tl.load(spot + field * WEIGHT, mask=here, other=0.0)
        step = old_d * code
        offset = tl.fma(old_dmin, minimum, tl.load(spot + field * LOWEST, mask=here, other=0.0))
        # What is left of the sums of w * q * x and of w * x.
        left = tl.fma(offset, level, tl.load(spot + field * MIXED, mask=here, other=0.0)) - step * square
        plain = tl.fma(offset, each, tl.load(spot + field * PLAIN, mask=here, other=0.0)) - step * level
        squares = tl.fma(code * code, square, squares)
        mixed = tl.fma(code * minimum, level, mixed)
        weight = tl.fma(minimum * minimum, each, weight)
        steps = tl.fma(code, left, steps)
        offsets = tl.fma(minimum, plain, offsets)
    # The determinant is a small difference of large products.
    wide_squares, wide_mixed, wide_weight = squares.to(tl.float64), mixed.to(tl.float64), weight.to(tl.float64)
    wide_steps, wide_offsets = steps.to(tl.float64), offsets.to(tl.float64)
    determinant = wide_squares * wide_weight - wide_mixed * wide_mixed
    by_step = (wide_steps * wide_weight - wide_mixed * wide_offsets) / determinant
    by_offset = (wide_mixed * wide_steps - wide_squares * wide_offsets) / determinant
    d = nearest_half(old_d + by_step.to(tl.float32))
    dmin = nearest_half(old_dmin + by_offset.to(tl.float32))
    gain = gain_of(d - old_d, dmin - old_dmin, steps, squares, mixed, weight, offsets)
    better = (d > 0.0) & (dmin > 0.0) & (gain > 0.0)
    tl.store(factors + lane, tl.where(better, d, old_d), mask=here)
    tl.store(factors + lanes + lane, tl.where(better, dmin, old_dmin), mask=here)


@triton.jit
def store(
    x: tl.tensor, kept: tl.tensor, factors: tl.tensor, codes: tl.tensor, scale_codes: tl.tensor,
    minimum_codes: tl.tensor, lanes: tl.tensor, rows: tl.tensor, blocks: tl.tensor, highest: tl.tensor,
    GROUP: tl.constexpr, LANES: tl.constexpr,
) -> None:  # fmt: skip
    """Per group: the codes of its scale, its minimum and its weights."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    here = lane < lanes
    at = lane // rows * (GROUP * rows) + lane % rows
    block = lane // rows // (SUPER // GROUP) * rows + lane % rows
    scale_code = tl.load(kept + lanes * SCALE_CODE + lane, mask=here, other=0.0)
    minimum_code = tl.load(kept + lanes * MINIMUM_CODE + lane, mask=here, other=0.0)
    tl.store(scale_codes + lane, scale_code.to(tl.uint8), mask=here)
    tl.store(minimum_codes + lane, minimum_code.to(tl.uint8), mask=here)
    lowest = tl.load(kept + lanes * LOWEST + lane, mask=here, other=0.0)
    inverse = reciprocal(tl.load(factors + block, mask=here, other=0.0) * scale_code)
    shift = tl.fma(tl.load(factors + blocks + block, mask=here, other=0.0), minimum_code, lowest) * inverse
    for column in range(GROUP):
        value = tl.load(x + at + column * rows, mask=here, other=0.0) - lowest
        tl.store(codes + at + column * rows, level_of(value, inverse, shift, highest).to(tl.uint8), mask=here)

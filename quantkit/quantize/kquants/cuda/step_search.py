"""The search for one step per group, for levels without an offset: see `kquants.signed_kernels` for what is computed.

Levels are all integers from `lowest` to `highest`, or, with CODEBOOK, those that `table` has: as `NEAREST` does, from
the format's first half step on.
"""

from __future__ import annotations

import triton
import triton.language as tl

from quantkit.quantize.kquants import signed_kernels
from quantkit.quantize.kquants.cuda.arithmetic import ROUNDER, nearest_half

# What is smaller counts as 0.
TINY = tl.constexpr(float(signed_kernels.TINY))


@triton.jit
def reciprocal(value: tl.tensor) -> tl.tensor:
    """1 / value, of either sign, or 0 where that is no number."""
    return tl.where(tl.abs(value) > TINY, tl.div_rn(1.0, value), 0.0)


@triton.jit
def level_of(
    value: tl.tensor,
    inverse: tl.tensor,
    lowest: tl.tensor,
    highest: tl.tensor,
    table: tl.tensor,
    CODEBOOK: tl.constexpr,
) -> tl.tensor:
    """The level nearest to value * inverse."""
    if CODEBOOK:
        inside = tl.minimum(tl.maximum(value * inverse, lowest), highest)
        return tl.load(table + ((inside - lowest) * 2.0).to(tl.int32))
    return tl.minimum(tl.maximum(tl.fma(value, inverse, ROUNDER), lowest + ROUNDER), highest + ROUNDER) - ROUNDER


@triton.jit
def sums_of(
    x: tl.tensor, w: tl.tensor, at: tl.tensor, here: tl.tensor, rows: tl.tensor, inverse: tl.tensor, lowest: tl.tensor,
    highest: tl.tensor, table: tl.tensor, GROUP: tl.constexpr, CODEBOOK: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Round a group times `inverse` to levels; the sums of w * level * x and w * level^2."""
    mixed = tl.zeros_like(inverse)
    squares = tl.zeros_like(inverse)
    for column in tl.range(0, GROUP, loop_unroll_factor=8):
        value = tl.load(x + at + column * rows, mask=here, other=0.0)
        level = level_of(value, inverse, lowest, highest, table, CODEBOOK)
        weighted = tl.load(w + at + column * rows, mask=here, other=0.0) * level
        mixed = tl.fma(weighted, value, mixed)
        squares = tl.fma(weighted, level, squares)
    return mixed, squares


@triton.jit
def search_steps(
    x: tl.tensor, w: tl.tensor, ratios: tl.tensor, table: tl.tensor, steps: tl.tensor, stiffness: tl.tensor,
    lanes: tl.tensor, rows: tl.tensor, lowest: tl.tensor, highest: tl.tensor, TRIES: tl.constexpr, GROUP: tl.constexpr,
    CODEBOOK: tl.constexpr, HALF: tl.constexpr, LANES: tl.constexpr,
) -> None:  # fmt: skip
    """Per group: the step that costs least, of as many tries as there are ratios, and its sum of w * level^2.

    With HALF the step is what float16 stores of it.
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    here = lane < lanes
    at = lane // rows * (GROUP * rows) + lane % rows
    extreme = tl.zeros([LANES], tl.float32)
    for column in range(GROUP):
        value = tl.load(x + at + column * rows, mask=here, other=0.0)
        extreme = tl.where(tl.abs(value) > tl.abs(extreme), value, extreme)
    unit = reciprocal(extreme)
    best = tl.zeros([LANES], tl.float32)
    step = tl.zeros([LANES], tl.float32)
    found = tl.zeros([LANES], tl.float32)
    for number in range(TRIES):
        inverse = unit * tl.load(ratios + number)
        mixed, squares = sums_of(x, w, at, here, rows, inverse, lowest, highest, table, GROUP, CODEBOOK)
        fitted = mixed * reciprocal(squares)
        stored = nearest_half(fitted) if HALF else fitted
        gain = tl.fma(fitted, mixed, -((stored - fitted) * (stored - fitted) * squares))
        better = gain > best
        best = tl.where(better, gain, best)
        step = tl.where(better, stored, step)
        found = tl.where(better, squares, found)
    tl.store(steps + lane, step, mask=here)
    tl.store(stiffness + lane, found, mask=here)


@triton.jit
def store(
    x: tl.tensor, steps: tl.tensor, table: tl.tensor, code_of: tl.tensor, codes: tl.tensor, lanes: tl.tensor,
    rows: tl.tensor, lowest: tl.tensor, highest: tl.tensor, GROUP: tl.constexpr, CODEBOOK: tl.constexpr,
    LANES: tl.constexpr,
) -> None:  # fmt: skip
    """Per group: the codes of its weights on their final step; `code_of` is as in `Levels`."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    here = lane < lanes
    at = lane // rows * (GROUP * rows) + lane % rows
    inverse = reciprocal(tl.load(steps + lane, mask=here, other=0.0))
    for column in range(GROUP):
        value = tl.load(x + at + column * rows, mask=here, other=0.0)
        place = (level_of(value, inverse, lowest, highest, table, CODEBOOK) - lowest).to(tl.int32)
        code = tl.load(code_of + place) if CODEBOOK else place.to(tl.uint8)
        tl.store(codes + at + column * rows, code, mask=here)


@triton.jit
def round_blocks(
    x: tl.tensor, scales: tl.tensor, codes: tl.tensor, lanes: tl.tensor, rows: tl.tensor, lowest: tl.tensor,
    highest: tl.tensor, GROUP: tl.constexpr, LANES: tl.constexpr,
) -> None:  # fmt: skip
    """Per block: the step with which `highest` reaches the largest weight; half a step is rounded away from 0."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    here = lane < lanes
    at = lane // rows * (GROUP * rows) + lane % rows
    largest = tl.zeros([LANES], tl.float32)
    for column in range(GROUP):
        largest = tl.maximum(largest, tl.abs(tl.load(x + at + column * rows, mask=here, other=0.0)))
    step = tl.div_rn(largest, highest)
    inverse = reciprocal(step)
    tl.store(scales + lane, step.to(tl.float16), mask=here)
    for column in range(GROUP):
        value = tl.load(x + at + column * rows, mask=here, other=0.0) * inverse
        whole = value.to(tl.int32).to(tl.float32)
        away = tl.where(value < 0.0, -1.0, 1.0)
        level = whole + tl.where(tl.abs(value - whole) >= 0.5, away, 0.0)
        tl.store(codes + at + column * rows, (level - lowest).to(tl.uint8), mask=here)

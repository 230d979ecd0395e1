"""The search for d and the scale code of every group of a block, step = d * code: Q3_K, Q6_K and IQ4_XS.

What is computed, and why, is said where it is done on the CPU, in `kquants.signed_kernels`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from quantkit.quantize.kquants import signed_kernels
from quantkit.quantize.kquants.cuda.arithmetic import nearest_code, nearest_half
from quantkit.quantize.kquants.cuda.step_search import reciprocal, sums_of

SMALLEST_HALF = tl.constexpr(float(signed_kernels.SMALLEST_HALF))


@triton.jit
def cost_of(step: tl.tensor, mixed: tl.tensor, squares: tl.tensor) -> tl.tensor:
    """What a step costs, but for what every step costs."""
    return step * tl.fma(step, squares, -2.0 * mixed)


@triton.jit
def search_d(
    steps: tl.tensor, stiffness: tl.tensor, divisors: tl.tensor, scales: tl.tensor, lanes: tl.tensor, rows: tl.tensor,
    lowest: tl.tensor, highest: tl.tensor, TRIES: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr,
) -> None:  # fmt: skip
    """Per block: the d with whose multiples one comes closest to the steps of its groups, by their stiffness."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    here = lane < lanes
    at = lane // rows * (GROUPS * rows) + lane % rows
    largest = tl.zeros([LANES], tl.float32)
    for group in range(GROUPS):
        step = tl.load(steps + at + group * rows, mask=here, other=0.0)
        largest = tl.where(tl.abs(step) > tl.abs(largest), step, largest)
    unit = reciprocal(largest)
    best = tl.zeros([LANES], tl.float32)
    d = tl.zeros([LANES], tl.float32)
    for number in range(TRIES):
        inverse = unit * tl.load(divisors + number)
        mixed = tl.zeros([LANES], tl.float32)
        squares = tl.zeros([LANES], tl.float32)
        for group in range(GROUPS):
            step = tl.load(steps + at + group * rows, mask=here, other=0.0)
            code = nearest_code(step * inverse, lowest, highest)
            weighted = tl.load(stiffness + at + group * rows, mask=here, other=0.0) * code
            mixed = tl.fma(weighted, step, mixed)
            squares = tl.fma(weighted, code, squares)
        fitted = mixed * reciprocal(squares)
        size = nearest_half(tl.maximum(tl.abs(fitted), SMALLEST_HALF))
        stored = tl.where(fitted < 0.0, -size, size)
        gain = tl.fma(fitted, mixed, -((stored - fitted) * (stored - fitted) * squares))
        better = gain > best
        best = tl.where(better, gain, best)
        d = tl.where(better, stored, d)
    tl.store(scales + lane, d, mask=here)


@triton.jit
def refine_codes(
    x: tl.tensor, w: tl.tensor, table: tl.tensor, scales: tl.tensor, steps: tl.tensor, codes: tl.tensor,
    mixed: tl.tensor, squares: tl.tensor, lanes: tl.tensor, rows: tl.tensor, lowest: tl.tensor, highest: tl.tensor,
    scale_lowest: tl.tensor, scale_highest: tl.tensor, REACH: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    CODEBOOK: tl.constexpr, LANES: tl.constexpr,
) -> None:  # fmt: skip
    """Per group: the best scale code for this d, and the sums by which it is judged."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    here = lane < lanes
    at = lane // rows * (GROUP * rows) + lane % rows
    d = tl.load(scales + lane // rows // GROUPS * rows + lane % rows, mask=here, other=0.0)
    below = tl.floor(tl.load(steps + lane, mask=here, other=0.0) * reciprocal(d))
    best = tl.full([LANES], float("inf"), tl.float32)
    found, found_mixed, found_squares = tl.zeros_like(d), tl.zeros_like(d), tl.zeros_like(d)
    for move in range(1 - REACH, REACH + 1):
        inverse = reciprocal(d * tl.minimum(tl.maximum(below + move, scale_lowest), scale_highest))
        m, s = sums_of(x, w, at, here, rows, inverse, lowest, highest, table, GROUP, CODEBOOK)
        code = nearest_code(m * reciprocal(s * d), scale_lowest, scale_highest)
        cost = cost_of(d * code, m, s)
        better = cost < best
        best = tl.where(better, cost, best)
        found = tl.where(better, code, found)
        found_mixed = tl.where(better, m, found_mixed)
        found_squares = tl.where(better, s, found_squares)
    tl.store(codes + lane, found, mask=here)
    tl.store(mixed + lane, found_mixed, mask=here)
    tl.store(squares + lane, found_squares, mask=here)


@triton.jit
def refit_d(
    codes: tl.tensor, mixed: tl.tensor, squares: tl.tensor, scales: tl.tensor, steps: tl.tensor,
    scale_codes: tl.tensor, lanes: tl.tensor, rows: tl.tensor, GROUPS: tl.constexpr, LANES: tl.constexpr,
) -> None:  # fmt: skip
    """Per block: fit d once more, to the levels of all groups; the final steps and scale codes."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    here = lane < lanes
    at = lane // rows * (GROUPS * rows) + lane % rows
    m = tl.zeros([LANES], tl.float32)
    s = tl.zeros([LANES], tl.float32)
    for group in range(GROUPS):
        code = tl.load(codes + at + group * rows, mask=here, other=0.0)
        m = tl.fma(code, tl.load(mixed + at + group * rows, mask=here, other=0.0), m)
        s = tl.fma(code * code, tl.load(squares + at + group * rows, mask=here, other=0.0), s)
    old = tl.load(scales + lane, mask=here, other=0.0)
    fitted = nearest_half(m * reciprocal(s))
    d = tl.where(cost_of(fitted, m, s) < cost_of(old, m, s), fitted, old)
    tl.store(scales + lane, d, mask=here)
    for group in range(GROUPS):
        code = tl.load(codes + at + group * rows, mask=here, other=0.0)
        tl.store(steps + at + group * rows, d * code, mask=here)
        tl.store(scale_codes + at + group * rows, code.to(tl.int8), mask=here)

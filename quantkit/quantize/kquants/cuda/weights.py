"""What an error in each weight costs: the importance of its column, and something for the weight's own size."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quantkit.quantize.kquants.cuda.launch import launch

# What counts of x^2 beside its mean: nothing, or the square or the root of a `spread` and their quotient.
NOTHING, SQUARE, ROOT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


def weights(
    x: torch.Tensor,
    importance: torch.Tensor | None,
    block: int,
    size: tl.constexpr,
    spread: float = 2.0,
    smallest: float = 0.0,
) -> torch.Tensor:
    """Return the costs of errors in `x` [K, R], float32 [K, R].

    With the `importance` [K] of columns, in parts of its mean over a `block` of columns, this is multiplied by
    spread + x^2 / mean x^2, the mean over a block of the row, or by the root of that, or by nothing, as `size` says.
    Sums of squares up to `smallest` count as 0.
    """
    rows, blocks = x.shape[1], x.numel() // block
    units, w = x.new_empty(2, blocks), torch.empty_like(x)
    read = x if importance is None else importance  # x is not read as importance
    constants = {"COLUMNS": block, "WEIGHTED": importance is not None}
    launch(measure, blocks, x, read, units, blocks, rows, smallest, **constants)
    launch(weigh, x.numel(), x, read, units, w, x.numel(), rows, blocks, spread, SIZE=size.value, **constants)
    return w


@triton.jit
def measure(
    x: tl.tensor, importance: tl.tensor, units: tl.tensor, lanes: tl.tensor, rows: tl.tensor, smallest: tl.tensor,
    COLUMNS: tl.constexpr, WEIGHTED: tl.constexpr, LANES: tl.constexpr,
) -> None:  # fmt: skip
    """Per block: 1 / the mean of the importance, and 1 / the mean of x^2. `units` [2, K / COLUMNS, R]."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    here = lane < lanes
    first = lane // rows * COLUMNS
    at = first * rows + lane % rows
    total = tl.zeros([LANES], tl.float32)
    squares = tl.zeros([LANES], tl.float32)
    for column in range(COLUMNS):
        if WEIGHTED:
            total += tl.load(importance + first + column, mask=here, other=1.0)
        value = tl.load(x + at + column * rows, mask=here, other=0.0)
        squares = tl.fma(value, value, squares)
    unit = tl.where(squares > smallest, tl.div_rn(1.0, squares), 0.0) * COLUMNS
    tl.store(units + lane, tl.div_rn(1.0, total) * COLUMNS, mask=here)
    tl.store(units + lanes + lane, unit, mask=here)


@triton.jit
def weigh(
    x: tl.tensor, importance: tl.tensor, units: tl.tensor, w: tl.tensor, lanes: tl.tensor, rows: tl.tensor,
    blocks: tl.tensor, spread: tl.tensor, COLUMNS: tl.constexpr, WEIGHTED: tl.constexpr, SIZE: tl.constexpr,
    LANES: tl.constexpr,
) -> None:  # fmt: skip
    """Per weight: what its error costs. `w` [K, R]."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    here = lane < lanes
    column = lane // rows
    block = column // COLUMNS * rows + lane % rows
    cost = tl.full([LANES], 1.0, tl.float32)
    if SIZE != NOTHING:
        value = tl.load(x + lane, mask=here, other=0.0)
        cost = tl.fma(value * value, tl.load(units + blocks + block, mask=here, other=0.0), spread)
    if SIZE == ROOT:
        cost = tl.sqrt_rn(cost)
    if WEIGHTED:
        cost = tl.load(importance + column, mask=here, other=0.0) * tl.load(units + block, mask=here, other=0.0) * cost
    tl.store(w + lane, cost, mask=here)

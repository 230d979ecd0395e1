"""The column loop of error feedback on a card, in Triton: one launch rounds a block of columns of many matrices."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Rows of a matrix that a program takes: a warp's.
LANES = tl.constexpr(32)


@triton.jit
def _round_columns(
    targets: tl.tensor,
    originals: tl.tensor,
    factors: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    errors: tl.tensor,
    codes: tl.tensor,
    columns: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    highest: tl.tensor,
) -> None:
    """Pointers to the first element of a block; `targets` are [E, C, N], the others parts of [E, K, N], K the width."""
    expert = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = row < rows
    rounder = tl.full([LANES], 12582912.0, tl.float32)  # 3 << 22: added and taken away again, it rounds to an integer
    target = targets + expert * columns * rows + row
    place = expert * width * rows + row
    for column in range(columns):
        here = place + column * rows
        wanted = tl.load(target + column * rows, inside)
        for earlier in range(column):
            # Rows of a program stay with their threads, which see what they wrote themselves.
            factor = tl.load(factors + (expert * width + earlier) * width + column)
            wanted += factor * tl.load(errors + place + earlier * rows, inside)
        scale, zero = tl.load(scales + here, inside, 1.0), tl.load(zeros + here, inside, 0.0)
        integer = tl.div_rn(wanted, scale) + rounder
        integer = tl.minimum(tl.maximum(integer, rounder - zero), rounder + (highest - zero)) - rounder
        tl.store(errors + here, tl.load(originals + here, inside) - integer * scale, inside)
        tl.store(codes + here, (integer + zero).to(tl.uint8), inside)


def round_columns(
    targets: torch.Tensor,
    originals: torch.Tensor,
    factors: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    highest: int,
    errors: torch.Tensor,
    codes: torch.Tensor,
) -> None:
    """Round the columns of one block, `targets` [E, C, N] and contiguous, with feedback among them.

    The others are the same columns [E, C, N] of contiguous [E, K, N], `factors` [E, C, C] a corner of contiguous
    [E, K, K]. Writes `errors` = original - rounded and the `codes` uint8, 0 to `highest`.
    """
    experts, columns, rows = targets.shape
    grid = (triton.cdiv(rows, LANES.value), experts)
    width = factors.stride(1)
    _round_columns[grid](
        targets, originals, factors, scales, zeros, errors, codes, columns, rows, width, float(highest), num_warps=1
    )

"""The inner loop of error feedback, compiled: columns of one block, one after the other."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

# Rows that go through a block together: their part of it stays in the first-level cache.
TILE = 64


@numba.njit(nogil=True, cache=True, fastmath={"contract", "nsz"})
def round_block(
    targets: Any,
    originals: Any,
    factors: Any,
    scales: Any,
    zeros: Any,
    groups: Any,
    highest: Any,
    errors: Any,
    codes: Any,
) -> None:
    """Round the columns of one block [B, N] (transposed: a column is contiguous) with feedback among them.

    `targets` [B, N] are the weights with the feedback of all earlier blocks in them, `originals` [B, N] those without;
    `factors` [B, B] hold in row j what column j takes from the columns before it. Column j uses the scales and zeros
    [G, N] of its group `groups[j]`. Writes `errors` [B, N] = original - rounded and `codes` [B, N], 0 to `highest`.
    """
    columns, rows = targets.shape
    wanted = np.empty(TILE, np.float32)
    for first in range(0, rows, TILE):
        count = min(TILE, rows - first)
        for column in range(columns):
            for row in range(count):
                wanted[row] = targets[column, first + row]
            for earlier in range(column):
                factor = factors[column, earlier]
                for row in range(count):
                    wanted[row] += factor * errors[earlier, first + row]
            group = groups[column]
            for row in range(count):
                scale = scales[group, first + row]
                zero = zeros[group, first + row]
                code = np.rint(wanted[row] / scale) + zero
                code = min(max(code, np.float32(0)), highest)
                codes[column, first + row] = np.uint8(code)
                errors[column, first + row] = originals[column, first + row] - (code - zero) * scale

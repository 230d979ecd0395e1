"""Packed integers to weights, compiled; on one thread, workers run several at a time."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quantkit.bits import store


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def dequantize_groups(codes: Any, zeros: Any, scales: Any, out: Any) -> None:
    """out[n, k] = (codes[n, k] - zeros[n, g]) * scales[n, g] for the groups g of neighbouring columns.

    `codes` uint8 [N, K], `zeros` uint8 [N, G], `scales` float32 [N, G]; `out` [N, K] float32, or bfloat16 as its bits.
    """
    rows, columns = codes.shape
    width = columns // scales.shape[1]
    for row in range(rows):
        for group in range(scales.shape[1]):
            zero, scale = np.int32(zeros[row, group]), scales[row, group]
            source = codes[row, group * width : (group + 1) * width]
            target = out[row, group * width : (group + 1) * width]
            for column in range(width):
                store(target, column, np.float32(np.int32(source[column]) - zero) * scale)

"""Round to nearest: every weight by itself, with scales that clip where that lowers the squared error."""

from __future__ import annotations

import numpy as np

from quantkit.arrays import Float32
from quantkit.checkpoint.dequant import dequantize_fp8_blocks
from quantkit.quantize.integers import IntegerGrid, Quantized
from quantkit.quantize.kquants.rows import Rows
from quantkit.quantize.kquants.tiles import LANES
from quantkit.quantize.scales import round_to_grid, search_scales, unreachable_groups


def quantize_rtn(rows: Rows, grid: IntegerGrid) -> tuple[Quantized, int]:
    """Return finite `rows` [N, K] on the grid, looking at nothing but the weights; and its unreachable groups.

    Of FP8 only a few rows at a time become float32.
    """
    count, width = rows.shape
    groups = (count, grid.groups(width))
    quantized = Quantized(np.empty((count, width), np.uint8), np.empty(groups, np.float32), np.empty(groups, np.uint8))
    unreachable = 0
    for first in range(0, count, LANES):
        part = slice(first, min(first + LANES, count))
        weights = _float32(rows, part)
        scales, zeros = search_scales(weights, grid)
        quantized.scales[part], quantized.zeros[part] = scales, zeros
        round_to_grid(weights, scales, zeros, grid, out=quantized.codes[part])
        unreachable += unreachable_groups(weights, scales, grid)
    return quantized, unreachable


def _float32(rows: Rows, part: slice) -> Float32:
    if rows.values is not None:
        return rows.values[part]
    assert rows.codes is not None
    assert rows.scale is not None
    return dequantize_fp8_blocks(rows.codes[part], rows.scale, rows.block, rows.first_row + part.start)

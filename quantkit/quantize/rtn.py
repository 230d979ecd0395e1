"""Round to nearest: every weight by itself, with scales that clip where that lowers the squared error."""

from __future__ import annotations

from quantkit.arrays import Float32
from quantkit.quantize.integers import IntegerGrid, Quantized
from quantkit.quantize.scales import round_to_grid, search_scales


def quantize_rtn(weights: Float32, grid: IntegerGrid) -> Quantized:
    """Return `weights` float32 [N, K] on the grid, looking at nothing but the weights."""
    scales, zeros = search_scales(weights, grid)
    return round_to_grid(weights, scales, zeros, grid)

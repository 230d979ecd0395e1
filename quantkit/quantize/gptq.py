"""GPTQ: integers chosen column by column, every error taken up by the columns that follow.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv 2210.17323.
Scales belong to groups of neighbouring columns and are fixed beforehand; columns are visited in the order of how much
enters them. So a file needs no permutation ("static" activation order).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from quantkit.arrays import Float32
from quantkit.quantize.feedback import Columns, round_with_feedback
from quantkit.quantize.feedback_kernels import round_block
from quantkit.quantize.hessian import Feedback, feedback
from quantkit.quantize.integers import DAMPING, IntegerGrid, Quantized
from quantkit.quantize.scales import min_max_scales, round_to_grid, search_scales

# Columns that are rounded between two matrix products.
BLOCK = 128
# Rows of a matrix on which its output error is measured: all of them would cost as much as the solution.
MEASURED_ROWS = 64


@dataclass(frozen=True)
class Solution:
    """A matrix on its grid, and what it took.

    `loss` and `rounding_loss` are the output errors tr((W - Q) H (W - Q)^T) of it and of plain rounding to the span of
    each group, both on some of its rows; `damping` is None without feedback.
    """

    quantized: Quantized
    loss: float
    rounding_loss: float
    damping: float | None


def solve(weights: torch.Tensor, hessian: torch.Tensor, grid: IntegerGrid) -> Solution | None:
    """Quantize `weights` float32 [N, K], into which inputs x with the mean `hessian` of x x^T go, float32 [K, K].

    Scales are chosen before the integers, to minimize the error weighted by what it costs with feedback: the output
    error is the sum over columns of cost * (w - q)^2, w taken with the feedback in it. (Weighting by the Hessian's
    diagonal forgets that later columns make good for much of it.) Returns None when no damping makes the Hessian
    definite: it is not finite.
    """
    found = feedback(hessian, DAMPING)
    if found is None:
        return None
    scales, zeros = search_scales(weights.numpy(), grid, found.cost.numpy())
    quantized = solve_on_scales(weights, found, grid, scales, zeros)
    return _measured(weights, hessian, grid, quantized, found.damping)


def round_weighted(weights: torch.Tensor, hessian: torch.Tensor, grid: IntegerGrid) -> Solution | None:
    """Round `weights` to scales that minimize the error weighted by the diagonal of `hessian`, without feedback.

    Returns None when the Hessian is not finite.
    """
    if not bool(torch.isfinite(hessian).all()):
        return None
    matrix = weights.numpy()
    scales, zeros = search_scales(matrix, grid, importance_of(hessian))
    return _measured(weights, hessian, grid, round_to_grid(matrix, scales, zeros, grid), None)


def importance_of(hessian: torch.Tensor) -> Float32 | None:
    """What the columns count for, float32 [K]; None when nothing entered any of them."""
    diagonal: Float32 = hessian.diagonal().float().numpy()
    return diagonal if diagonal.any() else None


class GroupedIntegers:
    """The grid of a GPTQ file: groups of neighbouring columns with `scales` and `zeros` [N, K / g] given beforehand.

    As nothing about a group is decided on the way, its columns may come in any order.
    """

    span = BLOCK

    def __init__(self, grid: IntegerGrid, width: int, scales: Float32, zeros: np.ndarray) -> None:
        self._highest = np.float32(grid.levels - 1)
        self._columns = grid.columns(width)
        self._scales, self._zeros = scales, zeros
        self._group_scales = np.ascontiguousarray(scales.T)
        self._group_zeros = np.ascontiguousarray(zeros.T.astype(np.float32))
        self._codes = np.empty((width, len(scales)), np.uint8)

    def round(self, columns: Columns, errors: torch.Tensor) -> None:
        """See `Grid`."""
        places = columns.places.numpy()
        codes = np.empty((len(places), self._codes.shape[1]), np.uint8)
        round_block(
            columns.targets.numpy(),
            columns.originals.numpy(),
            columns.factors.numpy(),
            self._group_scales,
            self._group_zeros,
            places // self._columns,
            self._highest,
            errors.numpy(),
            codes,
        )
        self._codes[places] = codes

    def quantized(self) -> Quantized:
        """The rounded matrix."""
        return Quantized(np.ascontiguousarray(self._codes.T), self._scales, self._zeros)


def solve_on_scales(
    weights: torch.Tensor, feedback: Feedback, grid: IntegerGrid, scales: Float32, zeros: np.ndarray
) -> Quantized:
    """Choose the codes of `weights` float32 [N, K] for given `scales` and `zeros` [N, K / g]."""
    grouped = GroupedIntegers(grid, weights.shape[1], scales, zeros)
    round_with_feedback(weights, feedback, grouped)
    return grouped.quantized()


def _measured(
    weights: torch.Tensor, hessian: torch.Tensor, grid: IntegerGrid, quantized: Quantized, damping: float | None
) -> Solution:
    some = slice(None, None, max(1, len(weights) // MEASURED_ROWS))
    sample = weights[some].contiguous()
    codes, scales, zeros = quantized.codes[some], quantized.scales[some], quantized.zeros[some]
    matrix = sample.numpy()
    rounded = round_to_grid(matrix, *min_max_scales(matrix, grid), grid)
    loss = output_error(sample, Quantized(codes, scales, zeros), hessian)
    return Solution(quantized, loss, output_error(sample, rounded, hessian), damping)


def output_error(weights: torch.Tensor, quantized: Quantized, hessian: torch.Tensor) -> float:
    """Return tr((W - Q) H (W - Q)^T): the squared output error, per row of input when `hessian` is a mean."""
    difference = weights - torch.from_numpy(quantized.dequantized())
    return float(((difference @ hessian) * difference).sum(dtype=torch.float64))

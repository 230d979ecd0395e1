"""ggml's blocks with integers chosen by error feedback: the same types and bytes, less of an output error."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quantkit.arrays import Bytes, Float32
from quantkit.formats.gguf.blocks.packing import pack
from quantkit.formats.gguf.blocks.table import FORMATS
from quantkit.quantize.blocks.grid import QUICK, BlockGrid, Effort
from quantkit.quantize.feedback import round_with_feedback
from quantkit.quantize.ggml_blocks import dequantize
from quantkit.quantize.gptq import importance_of
from quantkit.quantize.hessian import Feedback, feedback
from quantkit.quantize.kquants.rows import NotRepresentable, Rows
from quantkit.quantize.rows import F16_MAX, OWN, TYPES_THAT_NEED_IMPORTANCE, quantize_rows

# Types with a rounding rule per column; all others stay with a search.
COMPENSATED_TYPES = frozenset(FORMATS)
# Added to the Hessian's diagonal, relative to its mean; the next one when factorization fails.
DAMPING = (0.1, 0.3, 1.0)
# Columns of a block, and of the groups of either size, are visited together; so one factorization serves all types.
TOGETHER = (256, 32, 16)
# Rows of a matrix on which losses are compared: the search on all of them would cost as much as the solution.
COMPARED_ROWS = 16


@dataclass(frozen=True)
class BlockSolution:
    """A matrix in ggml's blocks: `packed` uint8 [N, bytes per row], and the `values` float32 [N, K] that ggml reads."""

    packed: Bytes
    values: Float32
    compensated: bool


@dataclass(frozen=True)
class Losses:
    """Output errors tr((W - Q) H (W - Q)^T) on some rows: the search without and with importance, and the chosen."""

    plain: float
    weighted: float
    chosen: float


def factorize(hessian: torch.Tensor) -> Feedback | None:
    """Factorize `hessian` float32 [K, K] once for all types; None when it is not finite."""
    return feedback(hessian, DAMPING, TOGETHER)


def solve_blocks(
    weights: torch.Tensor,
    hessian: torch.Tensor,
    found: Feedback,
    type_name: str,
    effort: Effort = QUICK,
    kquants: str = OWN,
) -> BlockSolution:
    """Quantize `weights` float32 [N, K] to blocks of `type_name`; `found` is the factorized `hessian` [K, K].

    Types outside of COMPENSATED_TYPES are left to a search, weighted by the Hessian's diagonal. Raises
    NotRepresentable when a weight is too large for the type. Rows do not know of each other.
    """
    rows, width = weights.shape
    if type_name not in COMPENSATED_TYPES:
        packed = quantize_rows(Rows(weights.numpy()), type_name, importance_of(hessian), kquants)
        return BlockSolution(packed, dequantize(packed, type_name, width), False)
    if float(weights.abs().max()) > F16_MAX:
        raise NotRepresentable("a weight exceeds 65504, the largest block scale")
    format = FORMATS[type_name]
    grid = BlockGrid(format, rows, width, effort)
    round_with_feedback(weights, found, grid)
    packed = pack(grid.blocks(), format)
    return BlockSolution(packed, dequantize(packed, type_name, width), True)


def compare_losses(
    weights: torch.Tensor, hessian: torch.Tensor, type_name: str, chosen: Float32, kquants: str = OWN
) -> Losses:
    """What the solution `chosen` [N, K] of `weights` [N, K] loses, and what a search would, on some rows."""
    some = slice(None, None, max(1, len(weights) // COMPARED_ROWS))
    sample = weights[some].contiguous()

    def searched(importance: Float32 | None) -> float:
        packed = quantize_rows(Rows(sample.numpy()), type_name, importance, kquants)
        return _loss(sample, dequantize(packed, type_name, sample.shape[1]), hessian)

    importance = importance_of(hessian)
    weighted = searched(importance)
    plain = weighted if type_name in TYPES_THAT_NEED_IMPORTANCE else searched(None)
    return Losses(plain, weighted, _loss(sample, chosen[some], hessian))


def _loss(weights: torch.Tensor, rounded: Float32, hessian: torch.Tensor) -> float:
    difference = weights - torch.from_numpy(rounded)
    return float(((difference @ hessian) * difference).sum(dtype=torch.float64))

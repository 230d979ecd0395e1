"""GPTQ of many matrices together: as `quantize.gptq`, each column of all of them at a time.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv 2210.17323.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from quantkit.quantize.batched.hessians import Feedbacks, feedbacks
from quantkit.quantize.batched.scales import search_scales, spanning
from quantkit.quantize.gptq import BLOCK, MEASURED_ROWS, Solution
from quantkit.quantize.integers import DAMPING, IntegerGrid, Quantized


@dataclass(frozen=True)
class Solutions:
    """`Solution` of each of E matrices [N, K], on the device: `codes` uint8 [E, N, K], `scales` float32 [E, N, K / g].

    `zeros` are float32 like the scales. `loss`, `rounding_loss` and `damping` are float64 [E]; the damping is 0 without
    feedback, and NaN where a Hessian was not finite: that matrix has no solution.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    loss: torch.Tensor
    rounding_loss: torch.Tensor
    damping: torch.Tensor

    def dequantized(self) -> torch.Tensor:
        """The weights, float32 [E, N, K]."""
        return _dequantized(self.codes, self.scales, self.zeros)

    def solution(self, number: int) -> Solution | None:
        """One of them in main memory; None where there is none."""
        damping = float(self.damping[number])
        if math.isnan(damping):
            return None
        arrays = (self.codes[number], self.scales[number], self.zeros[number].to(torch.uint8))
        quantized = Quantized(*(array.cpu().numpy() for array in arrays))
        return Solution(quantized, float(self.loss[number]), float(self.rounding_loss[number]), damping or None)


def solve(weights: torch.Tensor, hessians: torch.Tensor, grid: IntegerGrid) -> Solutions:
    """Quantize `weights` float32 [E, N, K] under `hessians` [E, K, K], as `gptq.solve` does with each."""
    found = feedbacks(hessians, DAMPING)
    scales, zeros = search_scales(weights, grid, torch.where(found.damping.isnan()[:, None], 0.0, found.cost))
    codes = round_with_feedback(weights, found, grid, scales, zeros)
    return _measured(weights, hessians, grid, codes, scales, zeros, found.damping)


def round_weighted(weights: torch.Tensor, hessians: torch.Tensor, grid: IntegerGrid) -> Solutions:
    """Round `weights` float32 [E, N, K] as `gptq.round_weighted` does with each."""
    diagonal = hessians.diagonal(dim1=1, dim2=2)
    scales, zeros = search_scales(weights, grid, torch.where(diagonal.any(1, keepdim=True), diagonal, 1.0))
    damping = torch.where(hessians.isfinite().all(2).all(1), 0.0, torch.nan).double()
    return _measured(weights, hessians, grid, _rounded(weights, scales, zeros, grid), scales, zeros, damping)


def round_with_feedback(
    weights: torch.Tensor, found: Feedbacks, grid: IntegerGrid, scales: torch.Tensor, zeros: torch.Tensor
) -> torch.Tensor:
    """Return the codes uint8 [E, N, K] of `weights` [E, N, K] for given `scales` and `zeros` [E, N, K / g]."""
    experts, rows, width = weights.shape
    numbers = torch.arange(experts, device=weights.device)[:, None]
    originals = weights.mT[numbers, found.order].contiguous()  # [E, K, N], in the order of the feedback
    groups = found.order // grid.columns(width)
    scales, zeros = (tensor.mT[numbers, groups].contiguous() for tensor in (scales, zeros))  # [E, K, N]
    errors = torch.empty_like(originals)
    codes = torch.empty(experts, width, rows, dtype=torch.uint8, device=weights.device)
    round_block = _round_block
    if weights.is_cuda:
        from quantkit.quantize.batched.column_kernels import round_columns as round_block
    for first in range(0, width, BLOCK):
        block = slice(first, first + BLOCK)
        targets = originals[:, block].clone()
        if first:
            targets.baddbmm_(found.factors[:, :first, block].mT, errors[:, :first])
        round_block(targets, originals[:, block], found.factors[:, block, block], scales[:, block], zeros[:, block],
                     grid.levels - 1, errors[:, block], codes[:, block])  # fmt: skip
    back = torch.empty_like(found.order).scatter_(
        1, found.order, torch.arange(width, device=weights.device).expand(experts, -1)
    )
    return codes[numbers, back].mT.contiguous()


def _round_block(
    targets: torch.Tensor,
    originals: torch.Tensor,
    factors: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    highest: int,
    errors: torch.Tensor,
    codes: torch.Tensor,
) -> None:
    """Round the columns of one block, all [E, C, N], with feedback among them; `factors` [E, C, C]."""
    for column in range(targets.shape[1]):
        scale, zero = scales[:, column], zeros[:, column]
        code = ((targets[:, column] / scale).round_() + zero).clamp_(0, highest)
        codes[:, column] = code
        error = torch.sub(originals[:, column], (code - zero).mul_(scale), out=errors[:, column])
        targets[:, column + 1 :].addcmul_(factors[:, column, column + 1 :, None], error[:, None])


def _rounded(weights: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, grid: IntegerGrid) -> torch.Tensor:
    parts = weights.view(*scales.shape, -1)
    codes = (parts / scales[..., None]).round_() + zeros[..., None]
    return codes.clamp_(0, grid.levels - 1).to(torch.uint8).view(weights.shape)


def _dequantized(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    return ((codes.view(*scales.shape, -1) - zeros[..., None]) * scales[..., None]).view(codes.shape)


def _measured(
    weights: torch.Tensor,
    hessians: torch.Tensor,
    grid: IntegerGrid,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    damping: torch.Tensor,
) -> Solutions:
    """Add the output errors on the rows that `gptq` takes."""
    step = max(1, weights.shape[1] // MEASURED_ROWS)
    sample, some_scales, some_zeros = (tensor[:, ::step].contiguous() for tensor in (weights, scales, zeros))
    span, span_zeros = spanning(sample.view(*some_scales.shape, -1), grid)
    plain = _dequantized(_rounded(sample, span, span_zeros, grid), span, span_zeros)
    found = _dequantized(codes[:, ::step].contiguous(), some_scales, some_zeros)
    loss, rounding_loss = (
        (torch.bmm(sample - values, hessians) * (sample - values)).sum((1, 2), dtype=torch.float64)
        for values in (found, plain)
    )
    return Solutions(codes, scales, zeros, loss, rounding_loss, damping)

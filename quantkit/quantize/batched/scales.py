"""The scale search of `quantize.search_kernels` in torch: the same candidates in the same order, all groups at once.

Sums are taken in another order than by the compiled kernel: where two scales are as good as each other it may choose
the other one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quantkit.quantize.integers import IntegerGrid
from quantkit.quantize.scale_kernels import LARGEST, SMALLEST
from quantkit.quantize.scales import first_step
from quantkit.quantize.search_kernels import (
    CLEARLY_LESS,
    DIGITS,
    FOUR_DEVIATIONS,
    HEADROOM,
    LESS,
    MEAN_SQUARE,
    MORE,
    MOST_SQUARE,
    NEAR,
)

# Weights that are searched at a time: some arrays of this size are there at once.
TOGETHER = 2**27


def spanning(weights: torch.Tensor, grid: IntegerGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """The scales and zeros, both float32 [..., G], with which the codes span groups `weights` [..., G, g]."""
    low, high = weights.amin(-1).clamp(max=0), weights.amax(-1).clamp(min=0)
    if grid.symmetric:
        scales = _nearest(torch.maximum(high, -low) / (grid.middle - 0.5))
        return scales, torch.full_like(scales, grid.middle)
    scales = _nearest((high - low) / (grid.levels - 1))
    return scales, (-low / scales).round().clamp(max=grid.levels - 1)


def search_scales(
    weights: torch.Tensor, grid: IntegerGrid, importance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scales and zeros, both float32 [E, N, K / g], with the least error of `weights` [E, N, K].

    `importance` [E, K] weighs each expert's columns; an expert where all are zero keeps the scales that span.
    """
    experts, rows, width = weights.shape
    columns = grid.columns(width)
    largest = importance.amax(1, keepdim=True)
    factors = torch.where(largest > 0, importance / largest, 0.0).view(experts, 1, -1, columns)
    parts = weights.view(experts, rows, -1, columns)
    step = max(1, TOGETHER // (experts * width))
    found = [_Search(parts[:, first : first + step], factors, grid).run() for first in range(0, rows, step)]
    scales, zeros = (torch.cat(tensors, 1) for tensors in zip(*found, strict=True))
    return scales, zeros


def _bits(scales: torch.Tensor) -> torch.Tensor:
    return scales.bfloat16().view(torch.int16).int().clamp(int(SMALLEST), int(LARGEST))


def _scale(bits: torch.Tensor) -> torch.Tensor:
    return (bits.clamp(int(SMALLEST), int(LARGEST)) << 16).view(torch.float32)


def _nearest(scales: torch.Tensor) -> torch.Tensor:
    return _scale(_bits(scales))


@dataclass
class _Kept:
    """The best of all candidates of each group so far."""

    scale: torch.Tensor
    zero: torch.Tensor
    error: torch.Tensor

    def better(self, scale: torch.Tensor, zero: torch.Tensor, error: torch.Tensor) -> None:
        better = error < self.error * float(CLEARLY_LESS)
        for kept, value in ((self.scale, scale), (self.zero, zero), (self.error, error)):
            kept.copy_(torch.where(better, value, kept))


class _Search:
    def __init__(self, weights: torch.Tensor, factors: torch.Tensor, grid: IntegerGrid) -> None:
        """`weights` [E, N, G, g], `factors` [E, 1, G, g]."""
        self._weights, self._factors, self._grid = weights, factors, grid
        self._span, self._span_zero = spanning(weights, grid)
        infinite = torch.full_like(self._span, torch.inf)
        self._best = _Kept(self._span.clone(), self._span_zero.clone(), infinite.clone())
        self._fitted = _Kept(self._span.clone(), self._span_zero.clone(), infinite)
        self._power = (factors * (weights / self._span[..., None]).square()).sum(-1)

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales and zeros [E, N, G]."""
        step = first_step(self._grid)
        everywhere = torch.ones_like(self._span, dtype=torch.bool)
        followed = self._span_zero
        for offset in range(0, HEADROOM + step, step):
            followed, _ = self._try_at(offset, followed, everywhere)
        self._descend(step, everywhere)
        if step > 1:
            self._try_around()
        return self._best.scale, self._best.zero

    def _descend(self, step: int, goes_on: torch.Tensor) -> None:
        mass, squares = self._factors.sum(-1), self._factors.square().sum(-1)
        likely = mass * float(MEAN_SQUARE) + float(FOUR_DEVIATIONS) * squares.sqrt()
        missed = torch.minimum(mass * float(MOST_SQUARE), likely)
        followed, offset = self._span_zero, -step
        while bool(goes_on.any()):
            followed, error = self._try_at(offset, followed, goes_on)
            scale = _scale(_bits(self._span) + offset)
            goes_on = goes_on & (error - missed * scale.square() < self._best.error) & (_bits(scale) > int(SMALLEST))
            offset -= step if step == 1 or offset > -NEAR else 2 * step

    def _try_at(self, offset: int, centre: torch.Tensor, goes_on: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Try the scales `offset` above those that span; return the best zeros there and their errors."""
        scale = torch.where(goes_on, _scale(_bits(self._span) + offset), self._span)
        centre = torch.where(goes_on, centre, self._span_zero)
        followed, least = centre, torch.full_like(scale, torch.inf)
        for distance in (0,) if self._grid.symmetric else (0, 1, -1):
            zero = (centre + distance).clamp(0, self._grid.levels - 1)
            error = self._try(scale, zero)
            followed, least = torch.where(error < least, zero, followed), torch.minimum(error, least)
        return followed, least

    def _try_around(self) -> None:
        centre, zero = self._fitted.scale.clone(), self._fitted.zero.clone()
        for factor in (LESS, MORE):
            self._try(_nearest(centre * float(factor)), zero)
        centre, zero = self._fitted.scale.clone(), self._fitted.zero.clone()
        for distance in (-1, 0, 1):
            self._try(_scale(_bits(centre) + distance), zero)

    def _try(self, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """Measure one candidate of each group, keep what is better, and return the errors."""
        inverse = scale.reciprocal()
        value = self._weights * inverse[..., None]
        low = -zero[..., None]
        miss = value - value.round().clamp(low, low + (self._grid.levels - 1))
        weighted = self._factors * miss
        squares, products = (weighted * miss).sum(-1), (weighted * value).sum(-1)
        error = squares * scale * scale
        self._best.better(scale, zero, error)
        self._fitted.better(*self._fit(scale, inverse, squares, products, zero))
        return error

    def _fit(
        self,
        scale: torch.Tensor,
        inverse: torch.Tensor,
        squares: torch.Tensor,
        products: torch.Tensor,
        zero: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The scale nearest to the one that is best for the candidate's integers, its zero, and the error with them."""
        power = self._power * (self._span * inverse).square()
        integers, mixed = power - products - products + squares, products - squares
        shift = torch.where(integers > power * float(DIGITS), mixed / integers, 0.0)
        nearest = _nearest(scale + scale * shift)
        off = nearest * inverse - 1 - shift
        return nearest, zero, (squares - mixed * shift + off * off * integers) * scale * scale

"""AWQ: columns that much enters are stored larger, so that rounding hurts them less.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", arXiv 2306.00978. Weights
W are quantized as W * s per column, and the inputs divided by s; where the factors go is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from quantkit.quantize.integers import IntegerGrid
from quantkit.quantize.scales import min_max_scales, round_to_grid

# Exponents that are tried, for each form of the factors. With 0 the plain form is the identity.
STEPS = 20
# Factors stay within this ratio of one: beyond it the norm that takes them up would leave its useful range.
WIDEST = 64.0


@dataclass(frozen=True)
class Sample:
    """Some rows of a weight matrix, float32 [N, K], some of its inputs, float32 [M, K], and what they count for."""

    weights: torch.Tensor
    inputs: torch.Tensor
    share: float


@dataclass(frozen=True)
class Factors:
    """Factors per column, float32 [K], and the output errors of the samples with and without them."""

    values: torch.Tensor
    loss: float
    plain_loss: float


def search_factors(samples: Sequence[Sample], magnitude: torch.Tensor, grid: IntegerGrid) -> Factors:
    """Return the factors with the least squared output error over `samples`; 1 everywhere is among the candidates.

    `magnitude` [K] is the mean |x| of each column. Rounding is plain here: clipping comes after, for the factors found.
    """
    plain = sum(_loss(sample, torch.ones_like(magnitude), grid) for sample in samples)
    best = Factors(torch.ones_like(magnitude), plain, plain)
    for values in _candidates(magnitude, _weight_profile(samples, grid)):
        loss = sum(_loss(sample, values, grid) for sample in samples)
        if loss < best.loss:
            best = Factors(values, loss, plain)
    return best


def _candidates(magnitude: torch.Tensor, profile: torch.Tensor) -> Iterator[torch.Tensor]:
    """Powers of the inputs' size alone, and over the opposite power of the weights' ("duo scaling")."""
    for step in range(1, STEPS + 1):
        ratio = step / STEPS
        for values in (magnitude**ratio, magnitude**ratio / profile ** (1 - ratio)):
            fine = torch.isfinite(values) & (values > 0)
            if not bool(fine.any()):
                continue
            low, high = values[fine].min(), values[fine].max()
            centred = torch.where(fine, values / (low * high).sqrt(), torch.ones_like(values))
            yield centred.clamp(1 / WIDEST, WIDEST)


def _weight_profile(samples: Sequence[Sample], grid: IntegerGrid) -> torch.Tensor:
    """Mean of |w| relative to the largest of its group, per column, float32 [K]."""
    total = torch.zeros(samples[0].weights.shape[1])
    for sample in samples:
        rows, width = sample.weights.shape
        grouped = sample.weights.abs().view(rows, grid.groups(width), -1)
        total += (grouped / grouped.amax(-1, keepdim=True).clamp_min(1e-30)).view(rows, width).mean(0)
    return (total / len(samples)).clamp_min(1e-4)


def _loss(sample: Sample, values: torch.Tensor, grid: IntegerGrid) -> float:
    scaled = (sample.weights * values).numpy()
    rounded = torch.from_numpy(round_to_grid(scaled, *min_max_scales(scaled, grid), grid).dequantized())
    difference = rounded.div_(values).sub_(sample.weights)
    return sample.share * float((sample.inputs @ difference.T).square_().mean(dtype=torch.float64))


def fold_into_norm(norm: torch.Tensor, values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide the norm's weights [K] by `values`, round to `dtype`, and return them with the factors really divided by.

    Both float32 [K]. Where the quotient vanishes or overflows the weight stays and the factor is 1.
    """
    rounded = (norm / values).to(dtype).float()
    real = (norm.double() / rounded.double()).float()
    sound = torch.isfinite(real) & (rounded != 0) & torch.isfinite(rounded)
    return torch.where(sound, rounded, norm), torch.where(sound, real, torch.ones_like(real))

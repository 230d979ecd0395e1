"""Perplexity and KL divergence from two models' scores of the same tokens.

With the top K of a vocabulary the tokens that both models name are told apart and all others are one bucket. Merging
outcomes never raises a KL divergence, so the figure is a lower bound; `captured` says how much of the reference's
probability was told apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.verify.estimates import Draws, Resampler
from quantkit.verify.records import Rate, Scores

# Probability below this in the bucket is rounding of the float32 log-probabilities.
SMALLEST_REST = 1e-6
QUANTILES = {"median": 0.5, "p99": 0.99, "p999": 0.999}


@dataclass(frozen=True)
class PassageDivergence:
    """What two models say of the M scored tokens of one passage, [M] each, nats."""

    kld: NDArray[np.float64]
    surprise_reference: NDArray[np.float64]  # -log p of the token that stands there
    surprise_quantized: NDArray[np.float64]
    same_top1: NDArray[np.bool_]
    delta_p: NDArray[np.float64]  # change of that token's probability
    captured: NDArray[np.float64]

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Where both models gave numbers, [M]."""
        return np.isfinite(self.kld) & np.isfinite(self.surprise_quantized) & np.isfinite(self.surprise_reference)


def compare_scores(reference: Scores, quantized: Scores) -> PassageDivergence:
    """Hold the scores of one passage, [M] positions each, against each other; NaN scores give NaN."""
    kld, captured = _divergence(reference, quantized)
    with np.errstate(over="ignore", invalid="ignore"):
        delta = np.exp(quantized.actual) - np.exp(reference.actual)
    return PassageDivergence(
        kld=kld,
        surprise_reference=-reference.actual,
        surprise_quantized=-quantized.actual,
        same_top1=reference.top_ids[:, 0] == quantized.top_ids[:, 0],
        delta_p=delta,
        captured=captured,
    )


def _divergence(reference: Scores, quantized: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """KL(reference, quantized) over the tokens that both name and one bucket [M], and the mass told apart [M]."""
    positions, named = quantized.top_ids.shape
    # One sorted list for all positions: the key of a token is its position, then its id.
    span = int(max(reference.top_ids.max(initial=0), quantized.top_ids.max(initial=0))) + 1
    base = np.arange(positions, dtype=np.int64)[:, None] * span
    keys = (base + quantized.top_ids).ravel()
    order = np.argsort(keys, kind="stable")
    wanted = (base + reference.top_ids).ravel()
    place = np.minimum(np.searchsorted(keys, wanted, sorter=order), positions * named - 1)
    found = (keys[order[place]] == wanted).reshape(reference.top_ids.shape)
    theirs = quantized.top.ravel()[order[place]].reshape(reference.top_ids.shape).astype(np.float64)
    ours = reference.top.astype(np.float64)
    p = np.where(found, np.exp(ours), 0)
    q = np.where(found, np.exp(theirs), 0)
    with np.errstate(invalid="ignore"):
        inside = np.where(found, p * (ours - theirs), 0).sum(1)
    captured = p.sum(1)
    rest_p, rest_q = 1 - captured, 1 - q.sum(1)
    # Where both name the whole vocabulary nothing is left but rounding.
    bucket = (rest_p > SMALLEST_REST) & (min(named, reference.top_ids.shape[1]) < span)
    outside = np.where(
        bucket, rest_p * np.log(np.maximum(rest_p, SMALLEST_REST) / np.maximum(rest_q, SMALLEST_REST)), 0
    )
    broken = ~(np.isfinite(reference.top[:, 0]) & np.isfinite(quantized.top[:, 0]))
    kld = np.where(broken, np.nan, np.maximum(inside + outside, 0))
    return kld, np.where(broken, np.nan, captured)


@dataclass(frozen=True)
class Divergence:
    """Several passages together; every figure as its value and its draws (see estimates)."""

    parts: Sequence[PassageDivergence]
    resampler: Resampler

    @property
    def scored(self) -> int:
        """Positions that were compared."""
        return sum(len(part.kld) for part in self.parts)

    @property
    def not_finite(self) -> int:
        """Positions where one of the models gave no number."""
        return sum(int((~part.finite).sum()) for part in self.parts)

    def values(self) -> dict[str, tuple[float, Draws | None]]:
        """Name of a figure: its value and draws, over the positions where both models gave numbers."""
        difference = self._mean(lambda part: part.surprise_quantized - part.surprise_reference)
        squared = self._mean(lambda part: part.delta_p**2)
        found: dict[str, tuple[float, Draws | None]] = {
            "ppl.reference": self._exp(self._mean(lambda part: part.surprise_reference)),
            "ppl.quantized": self._exp(self._mean(lambda part: part.surprise_quantized)),
            "ppl.ratio": self._exp(difference),
            "kld.mean": self._both(self._mean(lambda part: part.kld)),
        }
        kld = np.concatenate([part.kld[part.finite] for part in self.parts])
        unit = np.repeat(np.arange(len(self.parts)), [int(part.finite.sum()) for part in self.parts])
        for name, share in QUANTILES.items():
            value = float(np.quantile(kld, share)) if len(kld) else math.nan
            found[f"kld.{name}"] = (value, self.resampler.quantile(kld, unit, share) if len(kld) else None)
        found["kld.max"] = (float(kld.max()) if len(kld) else math.nan, None)
        found["same_top1"] = self._both(self._mean(lambda part: part.same_top1.astype(np.float64)))
        found["rms_delta_p"] = (math.sqrt(squared.value), np.sqrt(self.resampler.ratio(squared)))
        found["captured_mass"] = (self._mean(lambda part: part.captured).value, None)
        return found

    def _mean(self, of: Callable[[PassageDivergence], NDArray[np.float64]]) -> Rate:
        sums = [float(of(part)[part.finite].sum()) for part in self.parts]
        return Rate(np.array(sums), np.array([float(part.finite.sum()) for part in self.parts]))

    def _both(self, rate: Rate) -> tuple[float, Draws]:
        return rate.value, self.resampler.ratio(rate)

    def _exp(self, rate: Rate) -> tuple[float, Draws]:
        with np.errstate(over="ignore"):
            return float(np.exp(rate.value)), np.exp(self.resampler.ratio(rate))

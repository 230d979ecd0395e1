"""How sure a figure is: bootstrap over units that were drawn together, requests or passages.

Both models are resampled with the same weights, so differences between them are paired (Efron and Tibshirani, "An
Introduction to the Bootstrap", chapters 8 and 13).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.verify.records import Rate

DRAWS = 10_000
# Quantiles sort every position; their intervals need fewer draws than a gate does.
QUANTILE_DRAWS = 400
CONFIDENCE = 0.95
NORMAL_95 = 1.959964  # standard errors to either side that hold as much of a normal distribution

Draws = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of the draws, and their standard deviation. Endless where there is but one unit."""

    low: float
    high: float
    standard_error: float


class Resampler:
    """Draws units with replacement, always the same ones for the same seed and number of units."""

    def __init__(self, units: int, *, seed: int = 0, draws: int = DRAWS) -> None:
        self.units = units
        # How often each unit is in each draw, [draws, units].
        self.weights = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=draws)

    def ratio(self, rate: Rate) -> Draws:
        """The rate in every draw, [draws]; NaN in draws without a chance."""
        counts, chances = self.weights @ rate.counts, self.weights @ rate.chances
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(chances > 0, counts / chances, np.nan)

    def quantile(self, values: NDArray[np.float64], unit: NDArray[np.int64], share: float) -> Draws:
        """The `share` quantile of `values` [M], each of a unit [M], in QUANTILE_DRAWS draws."""
        order = np.argsort(values)
        ordered, unit_of = values[order], unit[order]
        found = np.empty(min(QUANTILE_DRAWS, len(self.weights)))
        for number in range(len(found)):
            reached = np.cumsum(self.weights[number, unit_of])
            found[number] = ordered[min(int(np.searchsorted(reached, share * reached[-1])), len(ordered) - 1)]
        return found


def interval(draws: Draws, units: int) -> Interval:
    """The interval of `draws` that came from resampling `units`."""
    fine = draws[np.isfinite(draws)]
    if units < 2 or not len(fine):
        return Interval(-math.inf, math.inf, math.nan)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(fine, [tail, 1 - tail])
    return Interval(float(low), float(high), float(fine.std()))

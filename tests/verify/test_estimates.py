"""Intervals against textbook formulas, and pairing."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from quantkit.verify.estimates import Resampler, interval
from quantkit.verify.records import Rate


def _rate(values: np.ndarray) -> Rate:
    return Rate(values.astype(np.float64), np.ones(len(values)))


def test_interval_of_a_mean_is_the_normal_one_where_units_are_many() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = interval(Resampler(400).ratio(_rate(values)), 400)
    expected = scipy.stats.norm.interval(0.95, values.mean(), values.std() / 20)
    assert found.standard_error == pytest.approx(values.std() / 20, rel=0.03)
    assert (found.low, found.high) == pytest.approx(expected, abs=0.02)


def test_interval_covers_the_truth_in_about_95_of_100_samples() -> None:
    random = np.random.default_rng(2)
    resampler = Resampler(100, draws=2000)
    covered = 0
    for _ in range(300):
        found = interval(resampler.ratio(_rate(random.random(100) < 0.9)), 100)
        covered += found.low <= 0.9 <= found.high
    assert 0.88 <= covered / 300 <= 0.98


def test_differences_are_paired() -> None:
    """Two models that fail on the same requests differ by nothing, however much requests differ."""
    outcome = _rate(np.random.default_rng(3).random(60) < 0.7)
    resampler = Resampler(60)
    assert np.ptp(resampler.ratio(outcome)) > 0.2
    assert np.ptp(resampler.ratio(outcome) - resampler.ratio(outcome)) == 0


def test_ratios_weigh_units_by_their_chances() -> None:
    rate = Rate(np.array([9.0, 0.0]), np.array([9.0, 1.0]))
    assert rate.value == 0.9
    draws = Resampler(2).ratio(rate)
    assert set(np.round(np.unique(draws), 6)) == {0.0, 0.9, 1.0}


def test_draws_without_a_chance_are_left_out() -> None:
    rate = Rate(np.array([1.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    draws = Resampler(3).ratio(rate)
    assert np.isnan(draws).any()
    assert interval(draws, 3).low == 1.0
    assert np.isnan(Rate(np.zeros(2), np.zeros(2)).value)


def test_one_unit_says_nothing_about_the_spread() -> None:
    found = interval(Resampler(1).ratio(_rate(np.array([2.0]))), 1)
    assert (found.low, found.high) == (-np.inf, np.inf)


def test_quantiles_are_those_of_the_repeated_values() -> None:
    random = np.random.default_rng(4)
    unit = np.sort(random.integers(0, 20, 500))
    values = random.lognormal(size=500)
    resampler = Resampler(20, seed=5)
    draws = resampler.quantile(values, unit, 0.5)
    for number in (0, 7):
        repeated = np.repeat(values, resampler.weights[number, unit])
        assert draws[number] == pytest.approx(np.quantile(repeated, 0.5, method="inverted_cdf"))
    assert interval(draws, 20).low < np.median(values) < interval(draws, 20).high


def test_same_seed_same_draws() -> None:
    rate = _rate(np.arange(30))
    assert np.array_equal(Resampler(30, seed=9).ratio(rate), Resampler(30, seed=9).ratio(rate))
    assert not np.array_equal(Resampler(30, seed=9).ratio(rate), Resampler(30, seed=8).ratio(rate))

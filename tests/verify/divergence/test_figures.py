"""Divergence and perplexity against scipy and plain sums."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
from numpy.typing import NDArray

from quantkit.verify.divergence.figures import Divergence, compare_scores
from quantkit.verify.estimates import Resampler
from quantkit.verify.records import Scores

VOCAB = 300


def _logprobs(seed: int, positions: int = 40) -> NDArray[np.float64]:
    logits = np.random.default_rng(seed).normal(0, 3, (positions, VOCAB))
    return np.asarray(scipy.special.log_softmax(logits, axis=1))


def _near(logprobs: NDArray[np.float64], seed: int, by: float = 0.3) -> NDArray[np.float64]:
    noise = np.random.default_rng(seed).normal(0, by, logprobs.shape)
    return np.asarray(scipy.special.log_softmax(logprobs + noise, axis=1))


def _scores(logprobs: NDArray[np.float64], top: int, actual: NDArray[np.int64]) -> Scores:
    order = np.argsort(-logprobs, axis=1)[:, :top]
    rows = np.arange(len(logprobs))
    chosen = np.take_along_axis(logprobs, order, 1).astype(np.float32)
    return Scores(logprobs[rows, actual], order.astype(np.int32), chosen)


@pytest.fixture
def actual() -> NDArray[np.int64]:
    return np.random.default_rng(9).integers(0, VOCAB, 40)


def test_full_vocabulary_gives_scipys_relative_entropy(actual: NDArray[np.int64]) -> None:
    p, q = _logprobs(1), _near(_logprobs(1), 2)
    found = compare_scores(_scores(p, VOCAB, actual), _scores(q, VOCAB, actual))
    assert found.kld == pytest.approx(scipy.stats.entropy(np.exp(p), np.exp(q), axis=1), rel=1e-4, abs=1e-6)
    assert found.captured == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("top_p", "top_q"), [(20, 20), (VOCAB, 20), (20, VOCAB), (5, 50)])
def test_top_k_is_the_entropy_of_what_both_name_and_one_bucket(
    top_p: int, top_q: int, actual: NDArray[np.int64]
) -> None:
    p, q = _logprobs(3), _near(_logprobs(3), 4)
    a, b = _scores(p, top_p, actual), _scores(q, top_q, actual)
    found = compare_scores(a, b)
    for row in range(len(p)):
        named = sorted(set(a.top_ids[row].tolist()) & set(b.top_ids[row].tolist()))
        left, right = np.exp(p[row, named]), np.exp(q[row, named])
        expected = scipy.stats.entropy([*left, 1 - left.sum()], [*right, 1 - right.sum()])
        assert found.kld[row] == pytest.approx(expected, rel=1e-3, abs=2e-6)
        assert found.captured[row] == pytest.approx(left.sum(), abs=1e-5)
    assert (found.kld <= scipy.stats.entropy(np.exp(p), np.exp(q), axis=1) + 1e-5).all()


def test_other_figures_are_plain_sums(actual: NDArray[np.int64]) -> None:
    p, q = _logprobs(5), _near(_logprobs(5), 6)
    part = compare_scores(_scores(p, 50, actual), _scores(q, 50, actual))
    values = {name: value for name, (value, _) in Divergence([part], Resampler(1, draws=1)).values().items()}
    rows = np.arange(len(p))
    assert values["ppl.reference"] == pytest.approx(np.exp(-p[rows, actual].mean()))
    assert values["ppl.quantized"] == pytest.approx(np.exp(-q[rows, actual].mean()))
    assert values["ppl.ratio"] == pytest.approx(values["ppl.quantized"] / values["ppl.reference"])
    assert values["same_top1"] == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    change = np.exp(q[rows, actual]) - np.exp(p[rows, actual])
    assert values["rms_delta_p"] == pytest.approx(np.sqrt((change**2).mean()))
    assert values["kld.mean"] == pytest.approx(part.kld.mean())
    assert values["kld.max"] == part.kld.max()
    assert values["kld.p99"] == pytest.approx(np.quantile(part.kld, 0.99))


def test_equal_scores_diverge_by_nothing(actual: NDArray[np.int64]) -> None:
    scores = _scores(_logprobs(7), 30, actual)
    found = compare_scores(scores, scores)
    assert found.kld.max() == 0
    assert found.same_top1.all()


def test_positions_that_are_not_finite_are_counted_and_left_out(actual: NDArray[np.int64]) -> None:
    p = _logprobs(8)
    a = _scores(p, 30, actual)
    broken = Scores(a.actual.copy(), a.top_ids, a.top.copy())
    broken.top[3] = np.nan
    broken.actual[3] = np.nan
    broken.actual[5] = -np.inf
    found = Divergence([compare_scores(a, broken)], Resampler(1, draws=1))
    assert found.not_finite == 2
    assert np.isfinite(found.values()["kld.mean"][0])

"""Sums of outer products in parts, the pull toward a prior, and weights refitted to other inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gptq_reference import correlated

from quantkit.quantize.hessian import Gram, retargeted, shrunk

WIDTH = 48


def inputs(rows: int, seed: int = 0) -> np.ndarray:
    return correlated(rows, WIDTH, np.random.default_rng(seed)).astype(np.float32)


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


# Gram


@pytest.mark.parametrize("parts", [[100], [1] * 100, [64, 0, 36], [99, 1]])
def test_parts_make_the_whole(parts: list[int]) -> None:
    rows = inputs(100)
    gram = Gram()
    for part in torch.from_numpy(rows).split(parts):
        gram.add(part)
    expected = rows.astype(np.float64).T @ rows / 100
    assert gram.rows == 100
    assert np.abs(gram.mean(WIDTH).numpy() - expected).max() < 1e-6 * np.abs(expected).max()


def test_pairs_of_rows() -> None:
    """Entry [i, j] is the mean of y_i x_j."""
    before, after = inputs(100), inputs(100, seed=1)
    gram = Gram()
    for y, x in zip(*(torch.from_numpy(rows).split([30, 70]) for rows in (before, after)), strict=True):
        gram.add(y, x)
    expected = before.astype(np.float64).T @ after / 100
    assert np.abs(gram.mean(WIDTH).numpy() - expected).max() < 1e-6 * np.abs(expected).max()


def test_bfloat16_rows_are_summed_in_float32() -> None:
    rows = torch.from_numpy(inputs(4096)).bfloat16()
    gram = Gram()
    for part in rows.split(512):
        gram.add(part)
    expected = rows.double().T @ rows.double() / 4096
    assert gram.mean(WIDTH).dtype is torch.float32
    assert (gram.mean(WIDTH) - expected).abs().max() < 1e-6 * expected.abs().max()


def test_no_rows_mean_zeros() -> None:
    gram = Gram()
    gram.add(torch.empty(0, WIDTH))
    for nothing in (Gram(), gram):
        assert torch.equal(nothing.mean(WIDTH), torch.zeros(WIDTH, WIDTH))


# Shrinkage


@pytest.mark.parametrize(
    ("rows", "share"), [(0, 1), (2 * WIDTH, 1 / 4), (6 * WIDTH, 1 / 16), (198 * WIDTH, 1 / 10_000)]
)
def test_the_prior_fades_as_rows_come(rows: int, share: float) -> None:
    own, prior = (part.T @ part for part in tensors(inputs(60), inputs(60, seed=1)))
    expected = (1 - share) * own.double() + share * prior.double()
    assert (shrunk(own, rows, prior) - expected).abs().max() < 1e-6 * expected.abs().max()


# Retargeting


def ridge(weights: np.ndarray, before: np.ndarray, after: np.ndarray, damping: float) -> np.ndarray:
    """argmin over V of mean |W y - V x|^2 + damping * mean diagonal * |V - W|^2, by lstsq on stacked rows."""
    weights, before, after = (array.astype(np.float64) for array in (weights, before, after))
    hold = np.sqrt(damping * np.square(after).mean() * len(after))
    left = np.concatenate([after, hold * np.eye(WIDTH)])
    right = np.concatenate([before @ weights.T, hold * weights.T])
    return np.linalg.lstsq(left, right, rcond=None)[0].T


def moments(before: np.ndarray, after: np.ndarray) -> list[torch.Tensor]:
    """The means of y x^T and of x x^T."""
    cross, own = Gram(), Gram()
    cross.add(*tensors(before, after))
    own.add(*tensors(after))
    return [cross.mean(WIDTH), own.mean(WIDTH)]


@pytest.mark.parametrize("damping", [0.01, 0.1, 3.0])
@pytest.mark.parametrize("rows", [400, 20])
def test_it_is_least_squares(damping: float, rows: int) -> None:
    generator = np.random.default_rng(2)
    before = inputs(rows)
    after = (before + 0.1 * generator.standard_normal(before.shape) * before.std(0)).astype(np.float32)
    weights = generator.standard_normal((7, WIDTH)).astype(np.float32)
    found = retargeted(torch.from_numpy(weights), *moments(before, after), damping).numpy()
    expected = ridge(weights, before, after, damping)
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected - weights)


def test_it_lowers_the_output_error() -> None:
    before = inputs(500)
    after = before * np.random.default_rng(1).uniform(0.8, 1.2, WIDTH).astype(np.float32)
    (weights,) = tensors(np.random.default_rng(2).standard_normal((7, WIDTH)).astype(np.float32))
    y, x = tensors(before, after)
    found = retargeted(weights, *moments(before, after), 1e-3)
    assert (y @ weights.T - x @ found.T).square().mean() < 0.05 * (y @ weights.T - x @ weights.T).square().mean()


def test_equal_inputs_change_nothing() -> None:
    before = inputs(500)
    (weights,) = tensors(np.random.default_rng(2).standard_normal((7, WIDTH)).astype(np.float32))
    found = retargeted(weights, *moments(before, before), 0.01)
    assert torch.equal(found, weights)


@pytest.mark.parametrize("kind", ["nothing", "not finite"])
def test_inputs_that_say_nothing_change_nothing(kind: str) -> None:
    (weights,) = tensors(np.random.default_rng(2).standard_normal((7, WIDTH)).astype(np.float32))
    gram = torch.full((WIDTH, WIDTH), 0.0 if kind == "nothing" else torch.nan)
    assert torch.equal(retargeted(weights, gram, gram, 0.01), weights)

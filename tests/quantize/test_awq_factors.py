"""AWQ's factors: what the search may return, which channels it enlarges, and what the norm really takes up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantkit.quantize.awq import WIDEST, Factors, Sample, fold_into_norm, search_factors
from quantkit.quantize.integers import WHOLE_ROW, IntegerGrid

WIDTH = 128
GRIDS = [IntegerGrid(4, 32, False), IntegerGrid(4, 128, True), IntegerGrid(4, WHOLE_ROW, False)]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(sizes: torch.Tensor, *, seed: int = 0, share: float = 1.0) -> Sample:
    """Gaussian weights, and Gaussian inputs of these `sizes` per channel [K]."""
    weights = torch.randn(96, len(sizes), generator=generator(seed)) * 0.02
    return Sample(weights, torch.randn(64, len(sizes), generator=generator(seed + 1000)) * sizes, share)


def magnitude(*samples: Sample) -> torch.Tensor:
    return torch.cat([one.inputs for one in samples]).abs().mean(0)


def sizes_of(kind: str) -> torch.Tensor:
    sizes = torch.ones(WIDTH)
    if kind == "outlier":
        sizes[40] = 30
    elif kind == "spread":
        sizes = torch.randn(WIDTH, generator=generator(7)).mul(1.5).exp()
    elif kind == "dead":
        sizes[::4] = 0
    elif kind == "nothing":
        sizes *= 0
    return sizes


def output_error(one: Sample, factors: torch.Tensor, grid: IntegerGrid) -> float:
    """Mean squared output error in float64, rounding written anew: scales span each group, in bfloat16."""
    weights = (one.weights * factors).double().numpy()
    rows, width = weights.shape
    groups = weights.reshape(rows, grid.groups(width), -1)
    if grid.symmetric:
        scale, zero = np.abs(groups).max(-1, keepdims=True) / (grid.middle - 0.5), grid.middle
        scale = torch.from_numpy(scale).bfloat16().double().numpy()
    else:
        low, high = (np.minimum(groups.min(-1, keepdims=True), 0), np.maximum(groups.max(-1, keepdims=True), 0))
        scale = torch.from_numpy((high - low) / (grid.levels - 1)).bfloat16().double().numpy()
        zero = np.rint(-low / scale)
    rounded = (np.clip(np.rint(groups / scale) + zero, 0, grid.levels - 1) - zero) * scale
    difference = rounded.reshape(rows, width) / factors.double().numpy() - one.weights.double().numpy()
    return float(np.square(one.inputs.double().numpy() @ difference.T).mean())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", ["even", "outlier", "spread", "dead", "nothing"])
def test_never_worse_than_no_factors(kind: str, grid: IntegerGrid) -> None:
    given = sample(sizes_of(kind))
    found = search_factors([given], magnitude(given), grid)
    assert found.loss <= found.plain_loss
    assert found.plain_loss == pytest.approx(output_error(given, torch.ones(WIDTH), grid), rel=0.03)
    assert found.loss == pytest.approx(output_error(given, found.values, grid), rel=0.03)
    assert torch.isfinite(found.values).all()
    assert ((found.values >= 1 / WIDEST) & (found.values <= WIDEST)).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_an_outlier_channel_is_enlarged(grid: IntegerGrid) -> None:
    given = sample(sizes_of("outlier"))
    found = search_factors([given], magnitude(given), grid)
    assert found.values[40] > 1
    assert found.values[40] > 2 * found.values.median()
    assert found.values[40] == found.values.max()
    assert found.loss < 0.75 * found.plain_loss


@pytest.mark.parametrize("kind", ["nothing", "not finite"])
def test_a_magnitude_that_says_nothing_leaves_the_weights(kind: str) -> None:
    given = sample(torch.ones(WIDTH))
    says = torch.full((WIDTH,), 0.0 if kind == "nothing" else torch.nan)
    found = search_factors([given], says, GRIDS[0])
    assert torch.isfinite(found.values).all()
    assert found.loss <= found.plain_loss


def test_channels_without_input_stay_in_range() -> None:
    given = sample(sizes_of("dead"))
    found = search_factors([given], magnitude(given), GRIDS[0])
    assert torch.isfinite(found.values).all()
    assert (found.values > 0).all()


def test_samples_count_by_their_share() -> None:
    """Two experts want opposite channels; the one that counts more gets its own."""
    left, right = torch.ones(WIDTH), torch.ones(WIDTH)
    left[:2], right[2:4] = 30, 30

    def searched(first: float, second: float) -> Factors:
        samples = [sample(left, share=first), sample(right, seed=1, share=second)]
        return search_factors(samples, left if first > second else right, GRIDS[0])

    for found, larger in ((searched(100, 1), slice(0, 2)), (searched(1, 100), slice(2, 4))):
        assert found.values[larger].min() > 1.5 * found.values[4:].median()
    samples = [sample(left, share=3), sample(right, seed=1, share=5)]
    both = search_factors(samples, magnitude(*samples), GRIDS[0])
    expected = sum(one.share * output_error(one, torch.ones(WIDTH), GRIDS[0]) for one in samples)
    assert both.plain_loss == pytest.approx(expected, rel=0.03)


def test_the_search_is_repeatable_and_changes_nothing() -> None:
    given = sample(sizes_of("spread"))
    before = Sample(given.weights.clone(), given.inputs.clone(), given.share)
    first, second = (search_factors([given], magnitude(given), GRIDS[0]) for _ in range(2))
    assert torch.equal(first.values, second.values)
    assert torch.equal(given.weights, before.weights)
    assert torch.equal(given.inputs, before.inputs)


# What the norm takes up


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
def test_factors_are_what_the_rounded_norm_was_divided_by(dtype: torch.dtype) -> None:
    norm = torch.randn(4096, generator=generator(1)).to(dtype).float()
    values = torch.randn(4096, generator=generator(2)).mul(2).exp().clamp(1 / WIDEST, WIDEST)
    folded, factors = fold_into_norm(norm, values, dtype)
    assert torch.equal(folded.to(dtype).float(), folded), "nothing is lost when it is stored"
    assert torch.equal(factors, (norm.double() / folded.double()).float())
    product = folded.double() * factors.double()
    assert (product - norm.double()).abs().max() <= 2**-24 * norm.abs().max()
    assert ((product - norm.double()).abs() <= 2**-24 * norm.abs()).all()
    # And they are near what was asked for: a rounding of the norm's dtype away, and two of float32.
    rounding = torch.finfo(dtype).eps / 2 + 2**-23
    assert ((factors - values).abs() <= 1.01 * rounding * values).all()


def test_norm_weights_that_cannot_be_divided_stay() -> None:
    tiny, huge = 1e-38, 3e38
    norm = torch.tensor([0.0, -0.0, tiny, huge, -2.0, 1.0]).bfloat16().float()
    values = torch.tensor([3.0, 3.0, WIDEST, 1 / WIDEST, 4.0, 1.0])
    folded, factors = fold_into_norm(norm, values, torch.bfloat16)
    assert torch.equal(folded[:2], norm[:2])
    assert torch.equal(factors[:2], torch.ones(2))
    assert (folded[3], factors[3]) == (norm[3], 1)
    assert (folded[4], factors[4]) == (-0.5, 4)
    assert (folded[5], factors[5]) == (1, 1)
    assert torch.isfinite(factors).all()
    assert (factors > 0).all()
    assert torch.equal((folded * factors).bfloat16().float(), norm)


def test_one_is_no_change() -> None:
    norm = torch.randn(512, generator=generator(1)).bfloat16().float()
    folded, factors = fold_into_norm(norm, torch.ones(512), torch.bfloat16)
    assert torch.equal(folded, norm)
    assert torch.equal(factors, torch.ones(512))

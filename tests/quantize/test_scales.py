"""Scales on integer grids: how near the search comes to all that could be tried, and what every scale must be."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.quantize.integers import WHOLE_ROW, IntegerGrid, Quantized
from quantkit.quantize.scales import min_max_scales, round_to_grid, search_scales, unreachable_groups

SMALLEST_SCALE, LARGEST_SCALE = 2.0**-14, 65280.0
GRIDS = [IntegerGrid(bits, 32, symmetric) for bits in (4, 8) for symmetric in (True, False)]
by_grid = pytest.mark.parametrize(
    "grid", GRIDS, ids=lambda grid: f"{grid.bits}-{'symmetric' if grid.symmetric else 'asymmetric'}"
)


def random_weights(kind: str, shape: tuple[int, int], columns: int, seed: int = 0) -> np.ndarray:
    """Weights [N, K] about as large as a model's; "outlier" has one in each group of `columns`."""
    generator = np.random.default_rng(seed)
    match kind:
        case "gaussian" | "outlier":
            values = generator.standard_normal(shape)
        case "laplace":
            values = generator.laplace(size=shape)
        case "student":
            values = generator.standard_t(3, shape)
    if kind == "outlier":
        groups = values.reshape(-1, columns)
        groups[:, 5] = generator.choice([-1, 1], len(groups)) * generator.uniform(8, 30, len(groups))
    return (values * 0.02).astype(np.float32)


def random_importance(width: int, seed: int = 1) -> np.ndarray:
    """Mean squares as a layer's inputs have them: over some orders of magnitude."""
    return np.exp(np.random.default_rng(seed).standard_normal(width) * 1.5).astype(np.float32)


def group_errors(weights: np.ndarray, quantized: Quantized, importance: np.ndarray) -> np.ndarray:
    """Sum of importance * error^2 of every group, float64 [N, K / g]."""
    errors = importance * (weights.astype(np.float64) - quantized.dequantized()) ** 2
    return errors.reshape(*quantized.scales.shape, -1).sum(axis=2)


def searched_errors(weights: np.ndarray, grid: IntegerGrid, importance: np.ndarray | None) -> np.ndarray:
    quantized = round_to_grid(weights, *search_scales(weights, grid, importance), grid)
    return group_errors(weights, quantized, np.ones(weights.shape[1]) if importance is None else importance)


def zeros_worth_trying(groups: np.ndarray, scales: np.ndarray, grid: IntegerGrid) -> Iterator[np.ndarray]:
    """All there are with 4 bits; with 8 those around what the smallest and what the largest weight ask for."""
    if grid.symmetric:
        yield np.full(len(groups), grid.middle)
    elif grid.bits == 4:
        yield from np.broadcast_to(np.arange(16)[:, None], (16, len(groups)))
    else:
        for distance in range(-3, 4):
            yield np.clip(np.rint(-groups.min(axis=1) / scales) + distance, 0, 255)
            yield np.clip(255 - np.rint(groups.max(axis=1) / scales) + distance, 0, 255)


def brute_force(weights: np.ndarray, grid: IntegerGrid, importance: np.ndarray) -> np.ndarray:
    """The least errors [N, K / g] with 400 float64 scales from that of min and max downwards."""
    rows, width = weights.shape
    columns = grid.columns(width)
    groups = weights.reshape(-1, columns).astype(np.float64)
    factors = np.tile(importance.reshape(-1, columns), (rows, 1))
    low, high = np.minimum(groups.min(axis=1), 0), np.maximum(groups.max(axis=1), 0)
    span = np.maximum(high, -low) / (grid.middle - 0.5) if grid.symmetric else (high - low) / (grid.levels - 1)
    least = np.full(len(groups), np.inf)
    for shrink in np.linspace(0.1 if grid.bits == 4 else 0.6, 1, 400):
        scales = span * shrink
        for zeros in zeros_worth_trying(groups, scales, grid):
            codes = np.clip(np.rint(groups / scales[:, None]) + zeros[:, None], 0, grid.levels - 1)
            misses = groups - (codes - zeros[:, None]) * scales[:, None]
            least = np.minimum(least, (factors * misses**2).sum(axis=1))
    return least.reshape(rows, -1)


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("kind", ["gaussian", "laplace", "student", "outlier"])
@pytest.mark.parametrize("group_size", [32, 64, 128, WHOLE_ROW])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [4, 8])
def test_search_comes_within_one_percent_of_brute_force(
    bits: int, symmetric: bool, group_size: int, kind: str, weighted: bool
) -> None:
    grid = IntegerGrid(bits, group_size, symmetric)
    shape = (4, 512)
    weights = random_weights(kind, shape, grid.columns(shape[1]))
    importance = random_importance(shape[1]) if weighted else np.ones(shape[1], np.float32)
    least = brute_force(weights, grid, importance)
    found = searched_errors(weights, grid, importance if weighted else None)
    assert np.mean(found / least) < 1.01


@by_grid
def test_search_is_never_worse_than_min_max(grid: IntegerGrid) -> None:
    for kind in ("gaussian", "laplace", "student", "outlier"):
        weights = random_weights(kind, (64, 512), 32)
        importance = random_importance(512)
        plain = round_to_grid(weights, *min_max_scales(weights, grid), grid)
        for factors in (None, importance):
            before = group_errors(weights, plain, np.ones(512) if factors is None else factors)
            assert (searched_errors(weights, grid, factors) <= before * 1.00001).all()


@pytest.mark.parametrize("sign", [-1, 1])
def test_lone_giant_of_a_row_is_clipped(sign: int) -> None:
    # Spanning 40 standard deviations, all other weights would round to zero: an error of 3071.
    weights = random_weights("gaussian", (1, 3072), 3072) / np.float32(0.02)
    weights[0, 77] = sign * 40
    for symmetric in (True, False):
        grid = IntegerGrid(4, WHOLE_ROW, symmetric)
        scales, _ = search_scales(weights, grid)
        assert scales[0, 0] < min_max_scales(weights, grid)[0][0, 0] * 0.6
        assert searched_errors(weights, grid, None)[0, 0] < brute_force(weights, grid, np.ones(3072))[0, 0] * 1.01
        assert searched_errors(weights, grid, None)[0, 0] < 1500


@by_grid
def test_weights_on_a_grid_come_back_exactly(grid: IntegerGrid) -> None:
    generator = np.random.default_rng(3)
    codes = generator.integers(0, grid.levels, (16, 256)).astype(np.uint8)
    codes[:, ::32], codes[:, 1::32] = 0, grid.levels - 1
    scales = torch.from_numpy(generator.uniform(0.001, 0.1, (16, 8))).bfloat16().float().numpy()
    zeros = np.full((16, 8), grid.middle) if grid.symmetric else generator.integers(0, grid.levels, (16, 8))
    weights = Quantized(codes, scales, zeros.astype(np.uint8)).dequantized()
    back = round_to_grid(weights, *search_scales(weights, grid), grid)
    np.testing.assert_array_equal(back.dequantized(), weights)


@by_grid
def test_min_max_is_that_of_compressed_tensors(grid: IntegerGrid) -> None:
    weights = random_weights("laplace", (32, 512), 32)
    groups = torch.from_numpy(weights).reshape(32, 16, 32)
    arguments = QuantizationArgs(num_bits=grid.bits, symmetric=grid.symmetric, group_size=32)
    theirs, their_zeros = calculate_qparams(groups.amin(2), groups.amax(2), arguments)
    scales, zeros = min_max_scales(weights, grid)
    np.testing.assert_array_equal(scales, theirs.bfloat16().float().numpy())
    # Theirs is counted from the signed middle, and belongs to the scale before it became a bfloat16.
    difference = np.abs(zeros.astype(int) - (their_zeros.numpy().astype(int) + grid.middle))
    assert difference.max() <= (0 if grid.symmetric else 1)
    if not grid.symmetric:
        np.testing.assert_array_equal(zeros, np.rint(-groups.amin(2).numpy() / scales))


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_that_of_compressed_tensors(bits: int) -> None:
    grid = IntegerGrid(bits, 32, True)
    weights = random_weights("student", (32, 512), 32)
    scales, zeros = search_scales(weights, grid)
    weights[0, :32] = scales[0, 0] * (np.arange(32) - 15.5).astype(np.float32)  # ties
    arguments = QuantizationArgs(num_bits=bits, symmetric=True, group_size=32)
    theirs = quantize(torch.from_numpy(weights), torch.from_numpy(scales), torch.zeros(32, 16), arguments)
    codes = round_to_grid(weights, scales, zeros, grid).codes
    np.testing.assert_array_equal(codes, theirs.numpy().astype(int) + grid.middle)


@by_grid
def test_scales_are_exact_in_both_half_precisions(grid: IntegerGrid) -> None:
    weights = random_weights("student", (64, 512), 32)
    weights *= np.logspace(-8, 5.5, 64, dtype=np.float32)[:, None]
    for scales, _ in (min_max_scales(weights, grid), search_scales(weights, grid)):
        stored = torch.from_numpy(scales)
        assert torch.equal(stored.bfloat16().float(), stored)
        assert torch.equal(stored.half().float(), stored)
        assert scales.min() == SMALLEST_SCALE
        assert scales.max() <= LARGEST_SCALE


@by_grid
def test_group_of_zeros(grid: IntegerGrid) -> None:
    weights = random_weights("gaussian", (2, 64), 32)
    weights[1, 32:] = 0
    scales, zeros = search_scales(weights, grid)
    quantized = round_to_grid(weights, scales, zeros, grid)
    assert scales[1, 1] == SMALLEST_SCALE
    assert (quantized.codes[1, 32:] == zeros[1, 1]).all()
    assert (quantized.dequantized()[1, 32:] == 0).all()


@by_grid
def test_weights_beyond_the_largest_scale_saturate(grid: IntegerGrid) -> None:
    weights = np.full((1, 32), np.float32(3e38))
    weights[0, ::2] *= -1
    scales, zeros = search_scales(weights, grid)
    codes = round_to_grid(weights, scales, zeros, grid).codes
    assert scales[0, 0] == LARGEST_SCALE
    assert set(codes[0]) == {0, grid.levels - 1}


@by_grid
def test_groups_do_not_depend_on_their_neighbours_or_on_the_thread(grid: IntegerGrid) -> None:
    weights, importance = random_weights("student", (64, 512), 32), random_importance(512)
    importance[0] = importance.max()  # in every slice of columns below, so that all are normalized alike
    whole = search_scales(weights, grid, importance)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda row: search_scales(weights[row : row + 1], grid, importance), range(64)))
    for number in (0, 1):
        np.testing.assert_array_equal(np.concatenate([part[number] for part in parts]), whole[number])
    first = search_scales(np.ascontiguousarray(weights[:, :32]), grid, importance[:32])
    np.testing.assert_array_equal(first[0], whole[0][:, :1])


@by_grid
@pytest.mark.parametrize("factor", [2.0**-118, 2.0**118])
def test_size_of_importance_does_not_matter(grid: IntegerGrid, factor: float) -> None:
    weights, importance = random_weights("gaussian", (16, 512), 32), random_importance(512)
    expected = search_scales(weights, grid, importance)
    for found, wanted in zip(search_scales(weights, grid, importance * np.float32(factor)), expected):
        np.testing.assert_array_equal(found, wanted)


@by_grid
def test_columns_without_importance_are_free(grid: IntegerGrid) -> None:
    # Beyond the giant in a column that nobody uses, the group is as good as one that never had it.
    importance = np.ones(32, np.float32)
    importance[3] = 0
    weights = random_weights("gaussian", (64, 32), 32)
    calm = weights.copy()
    weights[:, 3] *= 50
    errors = searched_errors(weights, grid, importance)
    assert errors.mean() < searched_errors(calm, grid, importance).mean() * 1.01


@by_grid
def test_groups_without_any_importance_keep_min_max(grid: IntegerGrid) -> None:
    weights, importance = random_weights("student", (16, 64), 32), np.ones(64, np.float32)
    importance[32:] = 0
    plain = min_max_scales(weights, grid)
    for factors in (importance, np.zeros(64, np.float32)):
        for found, expected in zip(search_scales(weights, grid, factors), plain):
            np.testing.assert_array_equal(found[:, 1], expected[:, 1])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=4, max_size=4),
    st.lists(st.floats(0, 2.0**100, width=32), min_size=4, max_size=4),
    st.sampled_from(GRIDS),
)
def test_any_finite_group(values: list[float], factors: list[float], grid: IntegerGrid) -> None:
    grid = IntegerGrid(grid.bits, 4, grid.symmetric)
    weights, importance = np.array([values], np.float32), np.array(factors, np.float32)
    scales, zeros = search_scales(weights, grid, importance)
    quantized = round_to_grid(weights, scales, zeros, grid)
    assert SMALLEST_SCALE <= scales[0, 0] <= LARGEST_SCALE
    assert quantized.codes.max() < grid.levels
    assert zeros[0, 0] == grid.middle if grid.symmetric else zeros[0, 0] < grid.levels
    plain = round_to_grid(weights, *min_max_scales(weights, grid), grid)
    scaled = importance.astype(np.float64)
    before, after = group_errors(weights, plain, scaled), group_errors(weights, quantized, scaled)
    assert (after <= before * 1.0001 + 1e-30).all()


def test_groups_that_no_scale_fits_are_counted() -> None:
    weights = np.full((4, 128), 0.01, np.float32)
    weights[0, :64] *= 1e-10
    weights[1, 64] = 3e6
    weights[2] = 0
    grid = IntegerGrid(4, 64, True)
    scales, _ = search_scales(weights, grid)
    assert unreachable_groups(weights, scales, grid) == 2

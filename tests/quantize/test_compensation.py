"""ggml's blocks by error feedback: ggml reads what was assumed, the paper's procedure chooses the same integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gptq_reference import Problem, correlated, hessian_of, problem

from quantkit.formats.gguf.blocks.packing import Blocks, grid, unpack, values
from quantkit.formats.gguf.blocks.table import FORMATS, BlockFormat
from quantkit.quantize import ggml
from quantkit.quantize.blocks import grid as block_grid
from quantkit.quantize.blocks.grid import QUICK, THOROUGH, BlockGrid
from quantkit.quantize.compensate import (
    DAMPING,
    TOGETHER,
    BlockSolution,
    compare_losses,
    factorize,
    solve_blocks,
)
from quantkit.quantize.feedback import Columns, round_with_feedback
from quantkit.quantize.ggml_blocks import dequantize
from quantkit.quantize.hessian import Feedback, falling_order
from quantkit.quantize.kquants.rows import Rows
from quantkit.quantize.rows import NotRepresentable, quantize_rows

TYPES = sorted(FORMATS)
ROWS, WIDTH = 70, 512
# How much of the output error of ggml's search with importance may be left, on inputs that H does not know.
BOUND = 0.6


def held_out(width: int, seed: int = 0) -> tuple[Problem, np.ndarray]:
    """A problem whose H is of half of the inputs, and the H of the other half."""
    generator = np.random.default_rng([seed, width])
    weights = (generator.standard_normal((ROWS, width)) * 0.02).astype(np.float32)
    inputs = correlated(16 * width, width, generator)
    return Problem(weights, hessian_of(inputs[::2])), hessian_of(inputs[1::2])


def factorized(given: Problem) -> Feedback:
    found = factorize(torch.from_numpy(given.hessian))
    assert found is not None
    return found


def solved(given: Problem, type_name: str) -> BlockSolution:
    weights, hessian = torch.from_numpy(given.weights), torch.from_numpy(given.hessian)
    return solve_blocks(weights, hessian, factorized(given), type_name)


def output_error(weights: np.ndarray, rounded: np.ndarray, hessian: np.ndarray) -> float:
    difference = weights.astype(np.float64) - rounded
    return float(np.einsum("nk,kl,nl->", difference, hessian.astype(np.float64), difference))


# What ggml reads


@pytest.mark.parametrize("type_name", TYPES)
def test_ggml_reads_the_values_that_were_assumed(type_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The errors that went into the feedback are, to the bit, those of what ggml dequantizes."""
    given = problem(ROWS, WIDTH)
    assumed: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = BlockGrid.round

    def watched(self: BlockGrid, columns: Columns, errors: torch.Tensor) -> None:
        original(self, columns, errors)
        assumed.append((columns.places, errors.clone()))

    monkeypatch.setattr(BlockGrid, "round", watched)
    solution = solved(given, type_name)
    read = dequantize(solution.packed, type_name, WIDTH)
    assert np.array_equal(read.view(np.uint32), solution.values.view(np.uint32))
    for places, errors in assumed:
        assert np.array_equal((given.weights - read)[:, places.numpy()], errors.numpy().T)
    assert sum(len(places) for places, _ in assumed) == WIDTH
    assert ggml.valid(solution.packed, type_name)


# The procedure


def wanted_weights(given: Problem, order: np.ndarray, rounded: np.ndarray) -> np.ndarray:
    """What the paper's procedure is about to round when earlier columns became `rounded` [N, K], float64 [N, K]."""
    hessian = given.hessian.astype(np.float64)[np.ix_(order, order)]
    hessian += DAMPING[0] * hessian.diagonal().mean() * np.eye(len(order))
    inverse = np.linalg.inv(hessian)
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
    weights = given.weights.astype(np.float64)[:, order]
    wanted = np.empty_like(weights)
    for place, column in enumerate(order):
        wanted[:, column] = weights[:, place]
        error = (weights[:, place] - rounded[:, column]) / upper[place, place]
        weights[:, place:] -= np.outer(error, upper[place, place:])
    return wanted


def nearest(wanted: np.ndarray, blocks: Blocks, format: BlockFormat) -> tuple[np.ndarray, np.ndarray]:
    """The values nearest to `wanted` [N, K] on a grid, and how much nearer than the second (0 at a tie), in steps."""
    steps, offsets = (array.repeat(format.group, 1).astype(np.float64) for array in grid(blocks, format))
    levels = np.unique(np.array(format.levels))
    candidates = steps[..., None] * levels - offsets[..., None]
    distances = np.abs(candidates - wanted[..., None])
    first, second = np.sort(distances, axis=-1)[..., :2].transpose(2, 0, 1)
    found = np.take_along_axis(candidates, distances.argmin(-1)[..., None], -1)[..., 0]
    return found, (second - first) / np.maximum(np.abs(steps), 1e-30)


@pytest.mark.parametrize("type_name", TYPES)
def test_chooses_what_the_paper_chooses_on_the_same_grid(type_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_grid, "revise", lambda columns, rounded, sweeps: None)
    given, format = problem(ROWS, WIDTH), FORMATS[type_name]
    solution = solved(given, type_name)
    blocks = unpack(solution.packed, format, WIDTH)
    order = factorized(given).order.numpy()
    expected, nearer = nearest(wanted_weights(given, order, solution.values), blocks, format)
    other = np.abs(expected - values(blocks, format)) > 1e-6
    assert (nearer[other] < 2e-3).all()  # near ties, which float32 decides otherwise
    assert other.mean() < 1e-3
    plain, _ = nearest(given.weights.astype(np.float64), blocks, format)
    assert (np.abs(plain - solution.values) > 1e-6).mean() > 0.05


def test_columns_of_a_block_and_of_its_groups_stay_together() -> None:
    diagonal = torch.from_numpy(np.random.default_rng(0).random(768).astype(np.float32))
    order = falling_order(diagonal, TOGETHER).numpy()
    assert sorted(order) == list(range(768))
    for size in TOGETHER:
        runs = order.reshape(-1, size) // size
        assert (runs == runs[:, :1]).all()
    blocks = diagonal.numpy()[order].reshape(-1, 256).sum(1)
    assert (np.diff(blocks) <= 0).all()
    for group in diagonal.numpy()[order].reshape(-1, 16):
        assert (np.diff(group) <= 0).all()


# What it is for


@pytest.mark.parametrize("type_name", TYPES)
def test_output_error_on_inputs_not_seen(type_name: str) -> None:
    given, other = held_out(WIDTH)
    solution = solved(given, type_name)
    importance = given.hessian.diagonal().copy()
    searched = dequantize(quantize_rows(Rows(given.weights), type_name, importance), type_name, WIDTH)
    ratio = output_error(given.weights, solution.values, other) / output_error(given.weights, searched, other)
    assert ratio < BOUND


@pytest.mark.parametrize("type_name", ["Q2_K", "Q4_K", "Q6_K", "IQ4_XS", "Q4_1", "MXFP4"])
def test_revision_helps_every_row(type_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block: all of the loss is its own, so no row may lose."""
    given = problem(ROWS, 256)
    after = solved(given, type_name)
    monkeypatch.setattr(block_grid, "revise", lambda columns, rounded, sweeps: None)
    before = solved(given, type_name)
    damped = given.hessian + DAMPING[0] * given.hessian.diagonal().mean() * np.eye(256, dtype=np.float32)

    def losses(rounded: np.ndarray) -> np.ndarray:
        difference = given.weights.astype(np.float64) - rounded
        return np.einsum("nk,kl,nl->n", difference, damped.astype(np.float64), difference)

    assert (losses(after.values) <= losses(before.values) * (1 + 1e-5)).all()
    assert losses(after.values).sum() < 0.99 * losses(before.values).sum()


@pytest.mark.parametrize("type_name", ["Q2_K", "Q3_K", "Q4_K", "IQ4_XS", "Q4_0"])
def test_more_effort_loses_less(type_name: str) -> None:
    given = problem(ROWS, WIDTH)
    weights, hessian, found = torch.from_numpy(given.weights), torch.from_numpy(given.hessian), factorized(given)
    quick, thorough = (solve_blocks(weights, hessian, found, type_name, effort) for effort in (QUICK, THOROUGH))
    assert np.array_equal(dequantize(thorough.packed, type_name, WIDTH), thorough.values)
    before, after = (output_error(given.weights, some.values, given.hessian) for some in (quick, thorough))
    assert after < 0.99 * before


def test_losses_are_those_of_ggmls_searches_and_ours() -> None:
    given, type_name = problem(64, 256), "Q4_K"
    weights, hessian = torch.from_numpy(given.weights), torch.from_numpy(given.hessian)
    solution = solved(given, type_name)
    losses = compare_losses(weights, hessian, type_name, solution.values)
    some = np.ascontiguousarray(given.weights[::4])
    for found, importance in ((losses.plain, None), (losses.weighted, given.hessian.diagonal().copy())):
        searched = dequantize(quantize_rows(Rows(some), type_name, importance), type_name, 256)
        assert found == pytest.approx(output_error(some, searched, given.hessian), rel=1e-4)
    assert losses.chosen == pytest.approx(output_error(some, solution.values[::4], given.hessian), rel=1e-4)
    assert losses.chosen < losses.weighted


# What may come


@pytest.mark.parametrize("type_name", TYPES)
def test_blocks_of_zeros_and_of_tiny_and_large_weights(type_name: str) -> None:
    given = problem(16, WIDTH)
    given.weights[0] = 0
    given.weights[1, :256] = 0
    given.weights[2, 32:64] = 0
    given.weights[3] *= 1e-7
    given.weights[4] *= 1e4
    given.weights[5] = np.abs(given.weights[5])
    given.weights[6] = -np.abs(given.weights[6])
    solution = solved(given, type_name)
    assert np.isfinite(solution.values).all()
    assert ggml.valid(solution.packed, type_name)
    assert not solution.values[0].any()
    searched = dequantize(
        quantize_rows(Rows(given.weights), type_name, given.hessian.diagonal().copy()), type_name, WIDTH
    )
    for row in (1, 2, 4, 5, 6):
        ours, theirs = (
            output_error(given.weights[row : row + 1], some[row : row + 1], given.hessian)
            for some in (solution.values, searched)
        )
        assert ours < theirs


@pytest.mark.parametrize("type_name", TYPES)
def test_inputs_that_never_came(type_name: str) -> None:
    """Channels without any input keep their weights, to what the type resolves."""
    given = problem(16, WIDTH)
    given.hessian[100:200] = 0
    given.hessian[:, 100:200] = 0
    solution = solved(given, type_name)
    rest = given.weights - solution.values
    assert (rest[:, 112:192] ** 2).mean() < 0.25 * (given.weights**2).mean()


@pytest.mark.parametrize("type_name", ["Q4_K", "Q8_0", "MXFP4"])
def test_no_inputs_at_all(type_name: str) -> None:
    given = problem(16, 256)
    given.hessian[:] = 0
    solution = solved(given, type_name)
    assert ((given.weights - solution.values) ** 2).mean() < 0.05 * (given.weights**2).mean()


def test_rows_do_not_know_of_each_other() -> None:
    given = problem(ROWS, WIDTH)
    found = factorized(given)
    weights, hessian = torch.from_numpy(given.weights), torch.from_numpy(given.hessian)
    whole = solve_blocks(weights, hessian, found, "Q4_K")
    part = solve_blocks(weights[40:].contiguous(), hessian, found, "Q4_K")
    assert (whole.packed[40:] != part.packed).mean() < 0.01  # sums in another order decide near ties otherwise


def test_same_bytes_again() -> None:
    given = problem(ROWS, WIDTH)
    assert np.array_equal(solved(given, "Q2_K").packed, solved(given, "Q2_K").packed)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q8_0", "IQ4_NL", "MXFP4", "Q5_1"])
def test_rows_that_are_no_multiple_of_256(type_name: str) -> None:
    given, other = held_out(352)
    solution = solved(given, type_name)
    searched = dequantize(
        quantize_rows(Rows(given.weights), type_name, given.hessian.diagonal().copy()), type_name, 352
    )
    assert output_error(given.weights, solution.values, other) < BOUND * output_error(given.weights, searched, other)


def test_codebook_types_stay_with_ggmls_search() -> None:
    given = problem(8, 256)
    solution = solved(given, "IQ2_XS")
    assert not solution.compensated
    assert np.array_equal(
        solution.packed, quantize_rows(Rows(given.weights), "IQ2_XS", given.hessian.diagonal().copy())
    )


def test_weights_that_no_block_scale_holds() -> None:
    given = problem(8, 256)
    given.weights[3, 7] = 1e6
    with pytest.raises(NotRepresentable, match="65504"):
        solved(given, "Q4_K")


def test_hessian_that_is_not_finite() -> None:
    given = problem(8, 256)
    given.hessian[3, 3] = np.nan
    assert factorize(torch.from_numpy(given.hessian)) is None


def test_feedback_visits_every_column_once() -> None:
    """The core's contract, with a grid that only looks."""
    given = problem(8, 352)
    seen: list[np.ndarray] = []

    class Looking:
        span = 100

        def round(self, columns: Columns, errors: torch.Tensor) -> None:
            assert len(columns.places) <= self.span
            seen.append(columns.places.numpy())
            errors.zero_()
            assert torch.equal(columns.targets, columns.originals)  # no errors, no feedback

    round_with_feedback(torch.from_numpy(given.weights), factorized(given), Looking())
    assert sorted(np.concatenate(seen)) == list(range(352))

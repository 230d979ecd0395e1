"""GPTQ by error feedback: the paper's procedure chooses the same integers, and no Hessian ends in silent rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gptq_reference import Problem, correlated, distance_to_tie, hessian_of, problem, rounded_codes, wanted_quotients

from quantkit.quantize.feedback_kernels import TILE
from quantkit.quantize.gptq import BLOCK, Solution, round_weighted, solve, solve_on_scales
from quantkit.quantize.hessian import Feedback, feedback
from quantkit.quantize.integers import DAMPING, WHOLE_ROW, IntegerGrid, Quantized
from quantkit.quantize.scales import min_max_scales, round_to_grid, search_scales

NEAR_TIE = 1e-3
SYMMETRIC = IntegerGrid(4, 32, symmetric=True)


def factorized(hessian: np.ndarray, ladder: tuple[float, ...]) -> Feedback:
    found = feedback(torch.from_numpy(hessian), ladder)
    assert found is not None
    return found


def output_error(given: Problem, quantized: Quantized) -> float:
    """tr((W - Q) H (W - Q)^T) in float64."""
    difference = given.weights.astype(np.float64) - quantized.dequantized()
    return float(np.einsum("nk,kl,nl->", difference, given.hessian.astype(np.float64), difference))


def solved(given: Problem, grid: IntegerGrid) -> Solution:
    solution = solve(torch.from_numpy(given.weights), torch.from_numpy(given.hessian), grid)
    assert solution is not None
    return solution


# The paper's procedure


SHAPES = {
    32: [(5, 96), (TILE, BLOCK), (100, 2 * BLOCK + 32)],
    64: [(TILE + 1, 320), (3, 64)],
    128: [(70, 384)],
    WHOLE_ROW: [(2 * TILE - 1, 200), (1, BLOCK + 1)],
}
CASES = [(size, *shape) for size, shapes in SHAPES.items() for shape in shapes]


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize(("group_size", "rows", "width"), CASES)
@pytest.mark.parametrize("damping", [0.01, 0.03, 0.2])
def test_chooses_what_the_paper_chooses(
    group_size: int, rows: int, width: int, symmetric: bool, damping: float
) -> None:
    given, grid = problem(rows, width), IntegerGrid(4, group_size, symmetric)
    scales, zeros = search_scales(given.weights, grid, given.hessian.diagonal().copy())
    found = solve_on_scales(torch.from_numpy(given.weights), factorized(given.hessian, (damping,)), grid, scales, zeros)
    quotients = wanted_quotients(given, damping, grid, scales, zeros, found.codes)
    other = found.codes != rounded_codes(quotients, grid, zeros)
    assert (distance_to_tie(quotients[other]) < NEAR_TIE).all()
    assert other.sum() <= 2
    # The comparison means something: it is not what plain rounding gives.
    plain = round_to_grid(given.weights, scales, zeros, grid)
    assert (plain.codes != found.codes).mean() > 0.05


def test_8_bits() -> None:
    given, grid = problem(40, 224), IntegerGrid(8, 32, symmetric=True)
    scales, zeros = min_max_scales(given.weights, grid)
    found = solve_on_scales(torch.from_numpy(given.weights), factorized(given.hessian, (0.1,)), grid, scales, zeros)
    quotients = wanted_quotients(given, 0.1, grid, scales, zeros, found.codes)
    other = found.codes != rounded_codes(quotients, grid, zeros)
    assert (distance_to_tie(quotients[other]) < 10 * NEAR_TIE).all()
    assert other.sum() <= 3
    assert found.codes.min() < 16
    assert found.codes.max() >= 240


@pytest.mark.parametrize("width", [1, 31, 128, 300])
def test_the_factors_are_those_of_the_damped_hessian(width: int) -> None:
    """H = F D F^T in the order of falling diagonal, F with ones on the diagonal, D what an error costs."""
    given = problem(1, width)
    found = factorized(given.hessian, (0.05,))
    order = found.order.numpy()
    diagonal = given.hessian.diagonal()[order]
    assert (np.diff(diagonal) <= 0).all()
    assert torch.equal(torch.triu(found.factors), found.factors)
    assert torch.allclose(found.factors.diagonal(), torch.ones(width), rtol=1e-6)
    damped = given.hessian.astype(np.float64)[np.ix_(order, order)]
    damped += 0.05 * damped.diagonal().mean() * np.eye(width)
    factors = found.factors.double().numpy()
    product = (factors * found.cost.double().numpy()[order]) @ factors.T
    assert np.abs(product - damped).max() < 1e-5 * damped.max()
    assert (found.cost > 0).all()


# Hessians with a known answer


@pytest.mark.parametrize("diagonal", ["identity", "constant", "any", "zero"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_columns_that_know_nothing_of_each_other_are_rounded(diagonal: str, symmetric: bool) -> None:
    width, grid = 3 * BLOCK + 32, IntegerGrid(4, 32, symmetric)
    given = problem(TILE + 3, width)
    any_values = np.exp(np.random.default_rng(1).standard_normal(width))
    values = {"identity": np.ones(width), "constant": np.full(width, 7.5), "any": any_values, "zero": np.zeros(width)}
    hessian = np.diag(values[diagonal]).astype(np.float32)
    scales, zeros = min_max_scales(given.weights, grid)
    found = solve_on_scales(torch.from_numpy(given.weights), factorized(hessian, DAMPING), grid, scales, zeros)
    assert np.array_equal(found.codes, round_to_grid(given.weights, scales, zeros, grid).codes)


def test_a_constant_diagonal_means_natural_order() -> None:
    given = problem(1, 300)
    size = np.sqrt(given.hessian.diagonal().astype(np.float64))
    hessian = (given.hessian / np.outer(size, size)).astype(np.float32)
    np.fill_diagonal(hessian, 1)
    assert torch.equal(factorized(hessian, DAMPING).order, torch.arange(300))


def test_one_input_direction_is_kept_to_the_last_column() -> None:
    """With all inputs along one vector the errors of all other columns go into the last: what is left is its own."""
    width = 64
    direction = np.linspace(2, 1, width)
    given = Problem(problem(200, width).weights, np.outer(direction, direction).astype(np.float32))
    grid = IntegerGrid(4, WHOLE_ROW, symmetric=True)
    scales, zeros = min_max_scales(given.weights, grid)
    found = solve_on_scales(torch.from_numpy(given.weights), factorized(given.hessian, (1e-5,)), grid, scales, zeros)
    outputs = (given.weights.astype(np.float64) - found.dequantized()) @ direction
    rounded = (given.weights - round_to_grid(given.weights, scales, zeros, grid).dequantized()) @ direction
    # Weights at the end of the grid cannot take up more; most rows have others.
    assert np.median(np.abs(outputs) / scales[:, 0]) < 0.55
    assert np.square(outputs).mean() < 0.05 * np.square(rounded).mean()


# What it is good for


@pytest.mark.parametrize("grid", [SYMMETRIC, IntegerGrid(4, 128, False), IntegerGrid(4, WHOLE_ROW, True)])
@pytest.mark.parametrize("seed", range(3))
def test_the_output_error_is_well_below_that_of_rounding(grid: IntegerGrid, seed: int) -> None:
    given = problem(64, 256, seed=seed)
    solution = solved(given, grid)
    error = output_error(given, solution.quantized)
    plain = output_error(given, round_to_grid(given.weights, *min_max_scales(given.weights, grid), grid))
    searched = round_weighted(torch.from_numpy(given.weights), torch.from_numpy(given.hessian), grid)
    assert error < 0.5 * output_error(given, searched.quantized)
    assert output_error(given, searched.quantized) < plain
    assert error < 0.4 * plain
    assert solution.loss == pytest.approx(error, rel=1e-3)
    assert solution.rounding_loss == searched.rounding_loss == pytest.approx(plain, rel=1e-3)
    assert searched.loss == pytest.approx(output_error(given, searched.quantized), rel=1e-3)
    assert (solution.damping, searched.damping) == (DAMPING[0], None)


def test_it_carries_over_to_inputs_it_did_not_see() -> None:
    generator = np.random.default_rng(5)
    inputs = correlated(4000, 256, generator)
    seen, unseen = hessian_of(inputs[:2000]), hessian_of(inputs[2000:])
    weights = problem(64, 256).weights
    solution = solved(Problem(weights, seen), SYMMETRIC)
    plain = round_to_grid(weights, *min_max_scales(weights, SYMMETRIC), SYMMETRIC)
    assert output_error(Problem(weights, unseen), solution.quantized) < 0.5 * output_error(
        Problem(weights, unseen), plain
    )


def test_losses_of_many_rows_are_those_of_some() -> None:
    given = problem(300, 96)
    solution = solved(given, SYMMETRIC)
    per_row = solution.loss / len(range(0, 300, 300 // 64))
    assert per_row == pytest.approx(output_error(given, solution.quantized) / 300, rel=0.1)


def test_inputs_stay_as_they_were() -> None:
    given = problem(70, 160)
    weights, hessian = torch.from_numpy(given.weights.copy()), torch.from_numpy(given.hessian.copy())
    solve(weights, hessian, SYMMETRIC)
    assert np.array_equal(weights.numpy(), given.weights)
    assert np.array_equal(hessian.numpy(), given.hessian)


# Hessians that cannot be factorized as they are


def with_lowest_eigenvalue(share: float, width: int = 96) -> np.ndarray:
    """A symmetric matrix whose mean diagonal is 1 and whose lowest eigenvalue is `share`."""
    generator = np.random.default_rng(3)
    basis, _ = np.linalg.qr(generator.standard_normal((width, width)))
    values = np.full(width, (width - share) / (width - 1))
    values[0] = share
    return ((basis * values) @ basis.T).astype(np.float32)


def ladder_steps() -> list[tuple[float, float]]:
    """A lowest eigenvalue that the damping before does not lift above zero, and the damping that does."""
    steps = zip((0.0, *DAMPING[:-1]), DAMPING, strict=True)
    return [(-(low + high) / 2, high) for low, high in steps]


@pytest.mark.parametrize(("lowest", "damping"), ladder_steps())
def test_damping_rises_until_it_is_enough(lowest: float, damping: float) -> None:
    hessian = with_lowest_eigenvalue(lowest)
    found = factorized(hessian, DAMPING)
    assert found.damping == damping
    at_once = factorized(hessian, (damping,))
    assert torch.allclose(found.factors, at_once.factors, atol=1e-4)
    assert solved(Problem(problem(8, 96).weights, hessian), SYMMETRIC).damping == damping


@pytest.mark.parametrize("kind", ["few inputs", "one input", "dead columns", "twins", "nothing", "tiny", "huge"])
def test_singular_hessians_are_damped_and_solved(kind: str) -> None:
    """What calibration brings: fewer rows than columns, channels that are always 0, channels that are always equal."""
    inputs = correlated(500, 96, np.random.default_rng(4))
    inputs = {"few inputs": inputs[:20], "one input": inputs[:1]}.get(kind, inputs)
    if kind == "dead columns":
        inputs[:, ::3] = 0
    elif kind == "twins":
        inputs[:, 1::2] = inputs[:, ::2]
    elif kind in ("nothing", "tiny", "huge"):
        inputs *= {"nothing": 0, "tiny": 1e-16, "huge": 1e15}[kind]
    given = Problem(problem(16, 96).weights, hessian_of(inputs))
    solution = solved(given, SYMMETRIC)
    assert solution.damping == DAMPING[0]
    plain = round_to_grid(given.weights, *min_max_scales(given.weights, SYMMETRIC), SYMMETRIC)
    if kind == "nothing":
        assert (solution.loss, solution.rounding_loss) == (0, 0)
        searched = search_scales(given.weights, SYMMETRIC)
        assert np.array_equal(solution.quantized.codes, round_to_grid(given.weights, *searched, SYMMETRIC).codes)
    else:
        assert output_error(given, solution.quantized) < 0.6 * output_error(given, plain)
    distance = np.linalg.norm(solution.quantized.dequantized() - given.weights)
    assert distance < 3 * np.linalg.norm(plain.dequantized() - given.weights), "no weight runs away"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (95, 95), (40, 3), "all"])
def test_what_is_not_finite_is_no_solution(value: float, place: tuple[int, int] | str) -> None:
    given = problem(8, 96)
    hessian = given.hessian.copy()
    if isinstance(place, str):
        hessian[:] = value
    else:
        hessian[place] = hessian[place[::-1]] = value
    assert feedback(torch.from_numpy(hessian), DAMPING) is None
    assert solve(torch.from_numpy(given.weights), torch.from_numpy(hessian), SYMMETRIC) is None


def test_what_no_damping_helps_is_no_solution() -> None:
    hessian = with_lowest_eigenvalue(-2 * DAMPING[-1])
    assert feedback(torch.from_numpy(hessian), DAMPING) is None
    assert solve(torch.from_numpy(problem(8, 96).weights), torch.from_numpy(hessian), SYMMETRIC) is None

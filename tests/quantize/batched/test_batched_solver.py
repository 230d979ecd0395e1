"""Many matrices solved together: each as the CPU's solver solves it alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantkit.quantize import gptq
from quantkit.quantize.batched import solver
from quantkit.quantize.batched.hessians import Grams, feedbacks, retargeted, shrunk
from quantkit.quantize.batched.scales import search_scales
from quantkit.quantize.hessian import Gram, feedback
from quantkit.quantize.hessian import retargeted as retargeted_alone
from quantkit.quantize.hessian import shrunk as shrunk_alone
from quantkit.quantize.integers import WHOLE_ROW, IntegerGrid
from quantkit.quantize.scales import search_scales as search_alone

EXPERTS, ROWS, WIDTH = 3, 48, 256
GRIDS = [
    IntegerGrid(4, 128, True),
    IntegerGrid(4, 32, False),
    IntegerGrid(8, 64, True),
    IntegerGrid(4, WHOLE_ROW, True),
]
by_grid = pytest.mark.parametrize(
    "grid", GRIDS, ids=lambda grid: f"{grid.bits}-{grid.group_size}-{'symmetric' if grid.symmetric else 'asymmetric'}"
)


@pytest.fixture(scope="module")
def weights() -> torch.Tensor:
    values = np.random.default_rng(0).standard_t(4, (EXPERTS, ROWS, WIDTH)) * 0.02
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture(scope="module")
def inputs() -> list[torch.Tensor]:
    """Rows that enter each expert, correlated, some columns much larger; of the last one fewer than columns."""
    generator = np.random.default_rng(1)
    sizes = np.exp(generator.standard_normal(WIDTH))
    mixing = np.eye(WIDTH) + 0.1 * generator.standard_normal((WIDTH, WIDTH))
    counts = (1000, 400, 60)
    return [
        torch.from_numpy((generator.standard_normal((n, WIDTH)) @ mixing * sizes).astype(np.float32)) for n in counts
    ]


@pytest.fixture(scope="module")
def hessians(inputs: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([rows.T @ rows / len(rows) for rows in inputs])


def padded(inputs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True), torch.tensor([len(rows) for rows in inputs])


@by_grid
def test_scales_are_those_of_the_compiled_search(grid: IntegerGrid, weights: torch.Tensor) -> None:
    importance = torch.from_numpy(np.exp(np.random.default_rng(2).standard_normal((EXPERTS, WIDTH))).astype(np.float32))
    importance[1] = 1
    importance[2] = 0
    scales, zeros = search_scales(weights, grid, importance)
    for expert in range(EXPERTS):
        wanted_scales, wanted_zeros = search_alone(weights[expert].numpy(), grid, importance[expert].numpy())
        same = (scales[expert].numpy() == wanted_scales) & (zeros[expert].numpy() == wanted_zeros)
        assert same.mean() > 0.995


@by_grid
def test_solutions_are_those_of_one_after_the_other(
    grid: IntegerGrid, weights: torch.Tensor, hessians: torch.Tensor
) -> None:
    together = solver.solve(weights, hessians, grid)
    for expert in range(EXPERTS):
        alone, found = gptq.solve(weights[expert], hessians[expert], grid), together.solution(expert)
        assert alone is not None
        assert found is not None
        same = found.quantized.scales == alone.quantized.scales
        columns = grid.columns(WIDTH)
        codes = (found.quantized.codes == alone.quantized.codes).reshape(*same.shape, columns)
        # A scale that is as good as another may differ, and its row goes another way from there.
        assert same.mean() > 0.995
        rows = same.all(1)
        assert rows.mean() > 0.9
        assert codes[rows].mean() >= 0.999
        assert found.loss == pytest.approx(alone.loss, rel=1e-3)
        assert found.rounding_loss == pytest.approx(alone.rounding_loss, rel=1e-5)
        assert found.damping == alone.damping
        np.testing.assert_array_equal(together.dequantized()[expert].numpy(), found.quantized.dequantized())


@by_grid
def test_rounding_is_that_of_one_after_the_other(
    grid: IntegerGrid, weights: torch.Tensor, hessians: torch.Tensor
) -> None:
    together = solver.round_weighted(weights, hessians, grid)
    for expert in range(EXPERTS):
        alone, found = gptq.round_weighted(weights[expert], hessians[expert], grid), together.solution(expert)
        assert alone is not None
        assert found is not None
        assert (found.quantized.codes == alone.quantized.codes).mean() > 0.998
        assert found.loss == pytest.approx(alone.loss, rel=1e-3)
        assert found.damping is None


def test_codes_on_given_scales_differ_in_ties_only(weights: torch.Tensor, hessians: torch.Tensor) -> None:
    grid = GRIDS[0]
    found = feedbacks(hessians, gptq.DAMPING)
    scales, zeros = search_scales(weights, grid, found.cost)
    codes = solver.round_with_feedback(weights, found, grid, scales, zeros)
    for expert in range(EXPERTS):
        one = feedback(hessians[expert], gptq.DAMPING)
        assert one is not None
        arrays = scales[expert].numpy(), zeros[expert].to(torch.uint8).numpy()
        alone = gptq.solve_on_scales(weights[expert], one, grid, *arrays)
        assert (codes[expert].numpy() == alone.codes).mean() >= 0.999


def test_every_hessian_gets_the_damping_that_it_needs(hessians: torch.Tensor) -> None:
    values, vectors = torch.linalg.eigh(hessians[0].double())
    values[0] = -0.05 * hessians[0].diagonal().double().mean()
    indefinite = (vectors * values @ vectors.T).float()
    broken = torch.full_like(indefinite, torch.nan)
    never = torch.zeros_like(indefinite)
    found = feedbacks(torch.stack([hessians[0], indefinite, broken, never]), gptq.DAMPING)
    for number, matrix in enumerate((hessians[0], indefinite, broken, never)):
        alone = feedback(matrix, gptq.DAMPING)
        if alone is None:
            assert bool(found.damping[number].isnan())
            continue
        assert float(found.damping[number]) == pytest.approx(alone.damping)
        assert torch.equal(found.order[number], alone.order)
        torch.testing.assert_close(found.factors[number], alone.factors, rtol=2e-3, atol=2e-4)
        torch.testing.assert_close(found.cost[number], alone.cost, rtol=1e-3, atol=0)


def test_a_matrix_without_solution_leaves_the_others_alone(weights: torch.Tensor, hessians: torch.Tensor) -> None:
    given = hessians.clone()
    given[1, 5, 7] = given[1, 7, 5] = torch.nan
    for method in (solver.solve, solver.round_weighted):
        found, untouched = method(weights, given, GRIDS[0]), method(weights, hessians, GRIDS[0])
        assert found.solution(1) is None
        for expert in (0, 2):
            assert torch.equal(found.codes[expert], untouched.codes[expert])


def test_sums_over_rows_that_are_filled_up_with_zeros(inputs: list[torch.Tensor], weights: torch.Tensor) -> None:
    rows, counts = padded(inputs)
    others = rows.flip(1).roll(1, 2)
    own, cross = Grams.empty(EXPERTS, WIDTH, rows.device), Grams.empty(EXPERTS, WIDTH, rows.device)
    for part in (slice(0, 300), slice(300, None)):
        count = (counts - part.start).clamp(0, 300 if part.start == 0 else 10**6)
        own.add(rows[:, part], count)
        cross.add(rows[:, part], count, others[:, part])
    assert own.rows.tolist() == counts.tolist()
    priors = torch.diag_embed(own.mean().diagonal(dim1=1, dim2=2))
    leaning = shrunk(own.mean(), own.rows, priors)
    damping = 0.25 * WIDTH / own.rows.clamp(min=1)
    bent = retargeted(weights, cross.mean(), own.mean(), damping)
    for expert, entering in enumerate(inputs):
        alone, crossed = Gram(), Gram()
        alone.add(entering)
        crossed.add(rows[expert], others[expert])
        mean, crossed_mean = alone.mean(WIDTH), crossed.total / len(entering)
        torch.testing.assert_close(own.mean()[expert], mean, rtol=1e-3, atol=1e-3)
        wanted = shrunk_alone(mean, len(entering), torch.diag(mean.diagonal()))
        torch.testing.assert_close(leaning[expert], wanted, rtol=1e-3, atol=1e-3)
        wanted = retargeted_alone(weights[expert], crossed_mean, mean, float(damping[expert]))
        difference = (bent[expert] - wanted).norm() / (wanted - weights[expert]).norm()
        assert float(difference) < 1e-2

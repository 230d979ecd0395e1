"""One expert of M2.7's size: the output error of compensated blocks against ggml's search, on tokens not used for H.

Inputs are correlated Gaussians x = g diag(l)^(1/2) R diag(s), g standard normal, R a random rotation:

* Spectrum l_i = i^-exponent. Covariances of trained representations fall like a power law, with exponents near 1 (Ghosh
  et al., "Investigating Power Laws in Deep Representation Learning", arXiv 2202.05808). What enters w1 and w3 of the
  trained fixture's experts has 0.90 to 1.03 (quartiles; ranks 4 to 128 of 256), what enters w2 1.13 to 1.38. Here both
  have 1.
* Channels differ in size s: log-normal with a deviation of 0.5, as the weights of a norm and the stream behind it make
  them, and OUTLIERS of them are 20 times as large: what Dettmers et al. saw in language models of this size
  ("LLM.int8()", arXiv 2208.07339).
* An expert does not see what its layer sees. Along every direction its tokens have the layer's variance times a
  log-normal factor with a deviation of 0.5; the layer's Hessian, toward which a thin expert's is pulled, has not.

The exponent decides how much there is to gain: feedback moves errors to where inputs seldom point, and inputs that
point everywhere alike leave no such place. So the ratio is shown for other exponents too, white inputs included.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quantkit.forward.experts import ExpertRows
from quantkit.quantize.compensate import factorize, solve_blocks
from quantkit.quantize.ggml_blocks import dequantize
from quantkit.quantize.kquants.rows import Rows
from quantkit.quantize.rows import quantize_rows
from quantkit.run.calibrated.hessians import SHARED_TOKENS, Middle, entering_hessian, shared_hessian

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]

HIDDEN, WIDTH = 3072, 1536
ENTERING = {"w1": (WIDTH, HIDDEN), "w3": (WIDTH, HIDDEN)}
DOWN = {"w2": (HIDDEN, WIDTH)}
TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS")
EXPONENT = 1.0
EXPONENTS, FLAT = (1.25, 1.0, 0.75, 0.5), (0.25, 0.0)
OUTLIERS, OUTLIER_SIZE, DEVIATION = 6, 20.0, 0.5
# Tokens of an expert when 64 x 512 or four times as many pass, and how many the error is measured on.
SEEN, UNSEEN = (2048, 8192), 4096
# What compensated blocks may have of the output error of ggml's search with importance.
BOUND = 0.6


@cache
def rotation(width: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(width))).Q


@dataclass
class Activations:
    """Tokens of a layer and of one of its experts, [*, width]. White: no channel or direction differs from others."""

    width: int
    exponent: float
    white: bool = False
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self) -> None:
        factors, sizes = self._log_normal(), self._log_normal()
        sizes[torch.randperm(self.width, generator=self.generator)[:OUTLIERS]] *= OUTLIER_SIZE
        if self.white:
            factors, sizes = torch.ones(self.width), torch.ones(self.width)
        spread = torch.arange(1, self.width + 1).float().pow(-self.exponent / 2)
        self._layer = spread[:, None] * rotation(self.width) * sizes
        self._expert = factors.sqrt()[:, None] * self._layer

    def of_layer(self, count: int) -> torch.Tensor:
        return torch.randn(count, self.width, generator=self.generator) @ self._layer

    def of_expert(self, count: int) -> torch.Tensor:
        return torch.randn(count, self.width, generator=self.generator) @ self._expert

    def _log_normal(self) -> torch.Tensor:
        return torch.exp(DEVIATION * torch.randn(self.width, generator=self.generator))


def states_of(rows: torch.Tensor) -> Any:
    """`rows` [M, K] in the place of a pass's hidden states."""
    normed = SimpleNamespace(read=lambda index: rows[index], shape=rows.shape)
    return SimpleNamespace(normed=normed, alive=torch.ones(len(rows), dtype=torch.bool))


def hessian_of_entering(rows: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    return entering_hessian(ExpertRows(states_of(rows), torch.arange(len(rows)), torch.ones(len(rows))), shared)


def hessian_of_middle(rows: torch.Tensor) -> torch.Tensor:
    middle = Middle()
    middle.passing.add(rows)
    middle.cross.add(rows, rows)
    return middle.bent(torch.zeros(1, rows.shape[1]))[1]


def weights_of(shapes: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}


def errors(
    matrices: dict[str, torch.Tensor], hessian: torch.Tensor, seen: torch.Tensor, unseen: torch.Tensor, type_name: str
) -> dict[str, list[float]]:
    """||(W - Q) X||^2 over `unseen` [M, K] by matrix: compensated, and of ggml's search with the means of `seen`^2."""
    found = factorize(hessian)
    assert found is not None
    importance = seen.square().mean(0).numpy()

    def lost(weights: torch.Tensor, values: Any) -> float:
        return float(((weights - torch.from_numpy(values)) @ unseen.T).square().sum(dtype=torch.float64))

    result = {}
    for name, weights in matrices.items():
        searched = dequantize(quantize_rows(Rows(weights.numpy()), type_name, importance), type_name, weights.shape[1])
        ours = solve_blocks(weights, hessian, found, type_name).values
        result[name] = [lost(weights, ours), lost(weights, searched)]
    return result


@pytest.fixture(scope="module")
def entering() -> tuple[Activations, torch.Tensor]:
    """What enters w1 and w3, and the Hessian of all tokens of the layer."""
    activations = Activations(HIDDEN, EXPONENT)
    return activations, shared_hessian(states_of(activations.of_layer(SHARED_TOKENS)))


@pytest.mark.parametrize("count", SEEN)
def test_output_error_of_one_expert(entering: tuple[Activations, torch.Tensor], count: int) -> None:
    activations, shared = entering
    seen, unseen = activations.of_expert(count), activations.of_expert(UNSEEN)
    hessian = hessian_of_entering(seen, shared)
    behind = Activations(WIDTH, EXPONENT)
    passed, passed_later = behind.of_expert(count), behind.of_expert(UNSEEN)
    middle = hessian_of_middle(passed)
    ratios = {}
    for type_name in TYPES:
        lost = errors(weights_of(ENTERING), hessian, seen, unseen, type_name)
        lost |= errors(weights_of(DOWN), middle, passed, passed_later, type_name)
        ratios[type_name] = {name: ours / theirs for name, (ours, theirs) in lost.items()}
        print(f"\n{type_name:6s} {count} tokens: " + "  ".join(f"{k} {v:.3f}" for k, v in ratios[type_name].items()))
    assert max(max(found.values()) for found in ratios.values()) <= BOUND


def ratios_of_q4_k(activations: Activations) -> dict[int, float]:
    """Of w1, for every number of tokens in SEEN."""
    matrix = {"w1": weights_of(ENTERING)["w1"]}
    shared = shared_hessian(states_of(activations.of_layer(SHARED_TOKENS)))
    unseen, ratios = activations.of_expert(UNSEEN), {}
    for count in SEEN:
        seen = activations.of_expert(count)
        ours, theirs = errors(matrix, hessian_of_entering(seen, shared), seen, unseen, "Q4_K")["w1"]
        ratios[count] = ours / theirs
    shown = "  ".join(f"{count} tokens {ratio:.3f}" for count, ratio in ratios.items())
    print(f"\nQ4_K w1, exponent {activations.exponent:.2f}{', white' if activations.white else ''}: {shown}")
    return ratios


def test_the_flatter_the_spectrum_the_less_there_is_to_gain() -> None:
    found = [ratios_of_q4_k(Activations(HIDDEN, exponent)) for exponent in EXPONENTS]
    for count in SEEN:
        ratios = [one[count] for one in found]
        assert ratios == sorted(ratios)
        assert ratios[-1] <= 1


def test_white_inputs_that_are_known_exactly() -> None:
    """What is left is the search for scales."""
    unseen = Activations(HIDDEN, 0.0, white=True).of_expert(UNSEEN)
    matrix = {"w1": weights_of(ENTERING)["w1"]}
    ours, theirs = errors(matrix, torch.eye(HIDDEN), torch.ones(1, HIDDEN), unseen, "Q4_K")["w1"]
    print(f"\nQ4_K w1, white, their Hessian given: {ours / theirs:.4f}")
    assert 0.95 < ours / theirs <= 1.005


@pytest.mark.xfail(strict=True, reason="feedback follows correlations that tokens have by chance")
def test_flat_spectra_are_not_made_worse() -> None:
    flat = [Activations(HIDDEN, exponent) for exponent in FLAT] + [Activations(HIDDEN, 0.0, white=True)]
    assert max(max(ratios_of_q4_k(one).values()) for one in flat) <= 1

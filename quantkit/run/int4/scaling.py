"""AWQ's factors where MiniMax-M2 can take them up: between the norm before the experts and these, and in w3 and w2."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quantkit.forward.experts import EXPERT_ROWS, expert_rows
from quantkit.forward.routing import LayerRouting
from quantkit.forward.tokens import TokenStates
from quantkit.forward.weights import Weights
from quantkit.quantize.awq import Factors, Sample, fold_into_norm, search_factors
from quantkit.quantize.integers import IntegerGrid
from quantkit.run.calibrated.hessians import every

# A search looks at so many experts of a layer, at so many rows of their matrices and at so many of their inputs: which
# columns matter shows on a part, and the whole would cost as much as the rest of the run.
SAMPLED_EXPERTS, SAMPLED_ROWS, SAMPLED_INPUTS = 16, 512, 512


@dataclass(frozen=True)
class InputScaling:
    """A layer's folded tensors: w1, w3 and the router's columns are multiplied by `factors` [H], the norm has the rest.

    `factors` are exactly what the rounded norm was divided by.
    """

    factors: torch.Tensor
    norm: torch.Tensor
    router: torch.Tensor
    loss: float
    plain_loss: float


def find_input_scaling(
    weights: Weights, layer: int, routing: LayerRouting, states: TokenStates, grid: IntegerGrid, norm_dtype: torch.dtype
) -> InputScaling:
    """Search one vector for all experts of a layer and fold it; the router's logits do not change. In float32."""
    samples = []
    busiest = sorted(range(routing.experts), key=lambda expert: -routing.routed_count(expert))
    for expert in every(busiest, SAMPLED_EXPERTS):
        tokens = every(expert_rows(routing, expert)[0], SAMPLED_INPUTS)
        if len(tokens):
            inputs = states.normed.read(tokens).float().cpu()
            gate_up = weights.exact_expert(layer, expert).gate_up
            samples.append(Sample(every(gate_up, SAMPLED_ROWS), inputs, max(routing.routed_count(expert), 1)))
    norm = weights.values("ffn_norm", layer).cpu()
    router = weights.values("ffn_gate_inp", layer).cpu()
    if not samples:
        return InputScaling(torch.ones_like(norm), norm, router, 0.0, 0.0)
    found = search_factors(samples, _mean_magnitude(states), grid)
    norm, factors = fold_into_norm(norm, found.values, norm_dtype)
    return InputScaling(factors, norm, router * factors, found.loss, found.plain_loss)


def find_middle_factors(down: torch.Tensor, middle: torch.Tensor, grid: IntegerGrid) -> Factors:
    """Search the factors [W] of w2's columns, `down` [H, W], which w3's rows give, for inputs `middle` [M, W]."""
    wide = middle.float()
    return search_factors([Sample(every(down, SAMPLED_ROWS), wide, 1.0)], wide.abs().mean(0), grid)


def _mean_magnitude(states: TokenStates) -> torch.Tensor:
    """Mean |x| of what enters the experts, over all tokens that are still in, float32 [H]."""
    tokens = states.alive.nonzero().flatten()
    total = torch.zeros(states.normed.shape[1], device=tokens.device)
    for first in range(0, len(tokens), EXPERT_ROWS):
        total += states.normed.read(tokens[first : first + EXPERT_ROWS]).float().abs().sum(0)
    return (total / max(len(tokens), 1)).cpu()

"""What enters a layer's matrices, as Hessians: of all tokens, of one expert, and behind quantized w1 and w3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from quantkit.forward.experts import EXPERT_ROWS, ExpertRows, middle_rows
from quantkit.forward.rows import finite_rows
from quantkit.forward.statistics import Site
from quantkit.forward.tokens import TokenStates
from quantkit.quantize.hessian import Gram, retargeted, shrunk

# Matrices with the same input are solved together.
ATTENTION_ROLES = {Site.ATTENTION_INPUT: ("attn_q", "attn_k", "attn_v"), Site.ATTENTION_OUTPUT: ("attn_output",)}
# The inputs of w2 bend it toward the output of the original expert; columns over rows times this holds it back.
BENDING = 0.25
# So many tokens say what those have in common.
SHARED_TOKENS = 16384

Many = TypeVar("Many", torch.Tensor, list[int])


def every(many: Many, most: int) -> Many:
    """At most `most` of a tensor's rows, or of a list, at equal distances."""
    return many[:: max(1, -(-len(many) // most))]


def shared_hessian(states: TokenStates) -> torch.Tensor:
    """The mean of x x^T over tokens of a layer as they enter its experts, float32 [H, H] in main memory."""
    tokens = every(states.alive.nonzero().flatten(), SHARED_TOKENS)
    shared = Gram()
    for first in range(0, len(tokens), EXPERT_ROWS):
        shared.add(states.normed.read(tokens[first : first + EXPERT_ROWS]))
    return shared.mean(states.normed.shape[1]).cpu()


def entering_hessian(rows: ExpertRows, shared: torch.Tensor) -> torch.Tensor:
    """The mean of x x^T of what enters w1 and w3 of an expert, float32 [H, H] in main memory.

    A thin expert's leans on `shared` [H, H], what all tokens of its layer have in common.
    """
    entering = Gram()
    for part in rows.parts():
        entering.add(part)
    return shrunk(entering.mean(len(shared)).cpu(), entering.rows, shared)


@dataclass(frozen=True)
class Middle:
    """What enters w2: behind quantized w1 and w3 (x), and how that goes with what entered behind the originals (y)."""

    passing: Gram = field(default_factory=Gram)
    cross: Gram = field(default_factory=Gram)

    def bent(self, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return w2 `down` float32 [H, W] bent toward its original output, and its Hessian [W, W], in main memory."""
        width = down.shape[1]
        own, crossed = self.passing.mean(width).cpu(), self.cross.mean(width).cpu()
        target = retargeted(down, crossed, own, damping=BENDING * width / max(self.passing.rows, 1))
        # No other expert has these inputs: a thin expert's Hessian leans on its own diagonal.
        return target, shrunk(own, self.passing.rows, torch.diag(own.diagonal()))


def middles(
    rows: ExpertRows, exact: torch.Tensor, served: Sequence[torch.Tensor], factors: torch.Tensor | None = None
) -> list[Middle]:
    """What enters w2 behind the original w1 and w3, `exact` [2 W, H], and behind each of those `served` in their place.

    All are on the device and in the dtype of the matrix products, where `factors` [W] divide what passes the original.
    Rows that are not finite on both sides are left out.
    """
    found = [Middle() for _ in served]
    for part in rows.parts():
        before = middle_rows(part, exact)
        if factors is not None:
            before = before / factors
        for gate_up, middle in zip(served, found, strict=True):
            after = middle_rows(part, gate_up)
            fine = finite_rows(before) & finite_rows(after)
            middle.passing.add(after[fine])
            middle.cross.add(before[fine], after[fine])
    return found

"""The one loop of error feedback: what a column loses when it is rounded is taken up by the columns that follow.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv 2210.17323,
in the form of Chee et al. ("LDLQ", arXiv 2307.13304). What columns are rounded to is a grid's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from quantkit.quantize.hessian import Feedback


@dataclass(frozen=True)
class Columns:
    """Neighbours in the order of the feedback: C columns, each a row here.

    `targets` [C, N] are the weights with the feedback of all columns before these, `originals` [C, N] those without
    any. `places` int64 [C] are the columns' own numbers, `factors` [C, C] hold in row j what column j takes from those
    before it (ones on the diagonal, zeros above), `cost` [C] is what a squared error costs once feedback has done what
    it can.
    """

    places: torch.Tensor
    targets: torch.Tensor
    originals: torch.Tensor
    factors: torch.Tensor
    cost: torch.Tensor


class Grid(Protocol):
    """What the columns of one matrix are rounded to, and when: some at a time, on a grid chosen before or just then."""

    @property
    def span(self) -> int:
        """Columns that are rounded between two matrix products."""
        ...

    def round(self, columns: Columns, errors: torch.Tensor) -> None:
        """Round `columns` with feedback among them and write `errors` [C, N] = original - rounded."""
        ...


def round_with_feedback(weights: torch.Tensor, feedback: Feedback, grid: Grid) -> None:
    """Round `weights` float32 [N, K] onto `grid`, which remembers the outcome."""
    originals = weights.T.contiguous()[feedback.order]  # [K, N]
    errors = torch.empty_like(originals)
    for first in range(0, len(originals), grid.span):
        block = slice(first, first + grid.span)
        targets = originals[block]
        if first:
            targets = torch.addmm(targets, feedback.factors[:first, block].T, errors[:first])
        columns = Columns(
            feedback.order[block],
            targets,
            originals[block],
            feedback.factors[block, block].T.contiguous(),
            feedback.cost[feedback.order[block]],
        )
        grid.round(columns, errors[block])

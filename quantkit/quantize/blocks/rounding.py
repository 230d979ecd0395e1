"""One group of columns at a time onto the best of its scales."""

from __future__ import annotations

import numpy as np
import torch

from quantkit.arrays import Bytes, Float32
from quantkit.quantize.blocks.kernels import round_group
from quantkit.quantize.blocks.levels import Levels
from quantkit.quantize.blocks.scales import AT_FIRST, LATER, CodedScales, FreeScales


class Rounded:
    """The columns of a block, rounded: their scales, and `values` = step * level - offset, float32 [C, N].

    `places` uint8 [C, N] say how far above the lowest level each one is. `losses` [N] are known after a revision.
    """

    def __init__(self, scales: CodedScales | FreeScales, levels: Levels, group: int, shape: torch.Size) -> None:
        self.scales = scales
        self.places: Bytes = np.empty(shape, np.uint8)
        self.values = torch.empty(shape)
        self.losses = torch.empty(shape[1])
        self._table = levels
        self._group = group

    @property
    def groups(self) -> list[slice]:
        """The columns of each group."""
        return [slice(first, first + self._group) for first in range(0, len(self.places), self._group)]

    def round(
        self,
        group: int,
        targets: torch.Tensor,
        originals: torch.Tensor,
        factors: torch.Tensor,
        cost: torch.Tensor,
        errors: torch.Tensor,
    ) -> None:
        """Round a group for the first time; see `round_group` for the shapes."""
        self._try(group, AT_FIRST, targets, originals, factors, cost, None, errors)

    def improve(self, group: int, targets: torch.Tensor, factors: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
        """Round a group again, in the rows where it comes closer to `targets` [C, N] than now.

        Returns what the new values are short of the old ones, [C, N].
        """
        present = (factors * cost.sqrt()[:, None]) @ (targets - self.values[self.groups[group]])
        change = torch.empty_like(targets)
        self._try(group, LATER, targets, targets, factors, cost, present.numpy(), change)
        return change

    def take(self, other: Rounded) -> None:
        """Become like `other` in the rows of the matrix where that loses less."""
        better = other.losses < self.losses
        mask = better.numpy()
        self.losses = torch.where(better, other.losses, self.losses)
        self.values = torch.where(better, other.values, self.values)
        np.copyto(self.places, other.places, where=mask)
        self.scales.take(other.scales, mask)

    def _try(
        self,
        group: int,
        reach: int,
        targets: torch.Tensor,
        originals: torch.Tensor,
        factors: torch.Tensor,
        cost: torch.Tensor,
        present: Float32 | None,
        errors: torch.Tensor,
    ) -> None:
        """Round a group onto the best of the scales that are in `reach`; see `round_group`."""
        trials = self.scales.trials(group, reach)
        chosen = np.empty((2, targets.shape[1]), np.int16)
        columns, table = self.groups[group], self._table
        round_group(
            targets.numpy(), originals.numpy(), factors.numpy(), cost.numpy(), trials.steps, trials.offsets,
            table.lowest, table.highest, table.nearest, present, self.values[columns].numpy(), self.places[columns],
            chosen, errors.numpy(),
        )  # fmt: skip
        self.scales.choose(group, trials, chosen)

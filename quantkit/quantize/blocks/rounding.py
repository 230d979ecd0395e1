"""One group of columns at a time onto the best of its scales."""

from __future__ import annotations

import numpy as np
import torch

from quantkit.arrays import Float32
from quantkit.quantize.blocks.kernels import round_group
from quantkit.quantize.blocks.levels import Levels
from quantkit.quantize.blocks.scales import AT_FIRST, LATER, CodedScales, Codes, FreeScales


class Rounded:
    """The columns of a block, rounded: their scales, `levels`, and `values` = step * level - offset, float32 [C, N].

    `losses` [N] are known after a revision.
    """

    def __init__(self, scales: CodedScales | FreeScales, levels: Levels, group: int, shape: torch.Size) -> None:
        self.scales = scales
        self.levels: Float32 = np.empty(shape, np.float32)
        self.values = torch.empty(shape)
        self.losses = torch.empty(shape[1])
        self._table = levels
        self._group = group

    @property
    def groups(self) -> list[slice]:
        """The columns of each group."""
        return [slice(first, first + self._group) for first in range(0, len(self.levels), self._group)]

    def round(
        self, group: int, targets: torch.Tensor, originals: torch.Tensor, factors: torch.Tensor, cost: torch.Tensor
    ) -> None:
        """Round a group for the first time; see `round_group` for the shapes."""
        values, levels, chosen, _ = self._tried(group, AT_FIRST, targets, originals, factors, cost)
        columns = self.groups[group]
        self.values[columns], self.levels[columns] = values, levels
        self.scales.choose(group, AT_FIRST, chosen, np.ones(len(chosen[0]), bool))

    def improve(self, group: int, targets: torch.Tensor, factors: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
        """Round a group again, in the rows where it comes closer to `targets` [C, N] than now.

        Returns what the new values are short of the old ones, [C, N].
        """
        columns = self.groups[group]
        old = self.values[columns]
        present = (factors * cost.sqrt()[:, None]) @ (targets - old)
        allowed = torch.linalg.vector_norm(present, dim=0).square_().numpy()
        values, levels, chosen, losses = self._tried(group, LATER, targets, targets, factors, cost)
        better = losses < allowed
        kept = torch.where(torch.from_numpy(better), values, old)
        change = old - kept
        self.values[columns] = kept
        np.copyto(self.levels[columns], levels, where=better)
        self.scales.choose(group, LATER, chosen, better)
        return change

    def take(self, other: Rounded) -> None:
        """Become like `other` in the rows of the matrix where that loses less."""
        better = other.losses < self.losses
        mask = better.numpy()
        self.losses = torch.where(better, other.losses, self.losses)
        self.values = torch.where(better, other.values, self.values)
        np.copyto(self.levels, other.levels, where=mask)
        self.scales.take(other.scales, mask)

    def _tried(
        self,
        group: int,
        reach: int,
        targets: torch.Tensor,
        originals: torch.Tensor,
        factors: torch.Tensor,
        cost: torch.Tensor,
    ) -> tuple[torch.Tensor, Float32, Codes, Float32]:
        steps, offsets = self.scales.trials(group, reach)
        values = torch.empty(targets.shape)
        levels = np.empty(targets.shape, np.float32)
        chosen: Codes = np.empty((2, targets.shape[1]), np.int32)
        losses = np.empty(targets.shape[1], np.float32)
        table = self._table
        round_group(
            targets.numpy(), originals.numpy(), factors.numpy(), cost.numpy(), steps, offsets, table.lowest,
            table.highest, table.nearest, values.numpy(), levels, chosen, losses,
        )  # fmt: skip
        return values, levels, chosen, losses

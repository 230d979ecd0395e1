"""Second thoughts about a rounded block: its groups rounded once more, with all others of the block given.

The loss of a block, as far as later columns cannot make good for it, is the sum of cost * rest^2 over its columns, a
rest being what a column should have become, feedback included, minus what it became. Feedback visits a column once,
before it knows what becomes of the next; this is one sweep of coordinate descent on the same loss, group by group.
"""

from __future__ import annotations

import torch

from quantkit.quantize.blocks.rounding import Rounded
from quantkit.quantize.feedback import Columns


def revise(columns: Columns, rounded: Rounded, sweeps: int) -> None:
    """Lower the loss of a block in place, `sweeps` times; a group changes in the rows of the matrix where that helps.

    Leaves what every row of the matrix loses in `rounded`.
    """
    errors = columns.originals - rounded.values
    rests = (columns.targets - columns.originals).addmm_(columns.factors, errors)  # [C, N]
    groups = [_Group(columns, part) for part in rounded.groups]
    for _ in range(sweeps):
        for number, group in enumerate(groups):
            rests_behind = rests[group.behind]
            targets = torch.addmm(rounded.values[group.part], group.pull, rests_behind)
            change = rounded.improve(number, targets, group.factors, group.cost)
            rests_behind.addmm_(group.effect, change)
    rounded.losses = columns.cost @ rests.square_()


class _Group:
    """How the loss of a block depends on one of its groups, of g columns, with the others given."""

    def __init__(self, columns: Columns, part: slice) -> None:
        self.part = part
        self.behind = slice(part.start, None)  # an error in the group moves the rests from here on
        self.effect = columns.factors[self.behind, part]
        weighted = (self.effect * columns.cost[self.behind, None]).T
        own = weighted @ self.effect  # what a change of the group alone costs, [g, g]
        self.pull = torch.linalg.inv(own) @ weighted  # from the rests to how far the best values are from present ones
        factor = torch.linalg.cholesky(own.flip(0, 1)).flip(0, 1)  # own = factor factor^T, upper triangular
        root = factor.diagonal()
        self.factors = (factor / root).T.contiguous()
        self.cost = root.square()

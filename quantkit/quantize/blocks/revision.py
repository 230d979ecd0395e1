"""Second thoughts about a rounded block: its groups rounded once more, with all others of the block given.

The loss of a block, as far as later columns cannot make good for it, is the sum of cost * rest^2 over its columns, a
rest being what a column should have become, feedback included, minus what it became. Feedback visits a column once,
before it knows what becomes of the next; this is one sweep of coordinate descent on the same loss, group by group.
"""

from __future__ import annotations

import torch

from quantkit.quantize.blocks.rounding import Rounded
from quantkit.quantize.feedback import Columns


def revise(columns: Columns, rounded: Rounded) -> None:
    """Lower the loss of a block in place; a group changes in the rows of the matrix where that helps."""
    errors = columns.originals - rounded.values
    rests = torch.addmm(columns.targets - columns.originals, columns.factors, errors)  # [C, N]
    for number, part in enumerate(rounded.groups):
        behind = slice(part.start, None)  # an error here moves the rests from here on
        effect = columns.factors[behind, part]
        weighted = (effect * columns.cost[behind, None]).T
        own = weighted @ effect  # what a change of the group alone costs, [g, g]
        targets = torch.addmm(rounded.values[part], torch.linalg.inv(own) @ weighted, rests[behind])
        factor = torch.linalg.cholesky(own.flip(0, 1)).flip(0, 1)  # own = factor factor^T, upper triangular
        root = factor.diagonal()
        change = rounded.improve(number, targets, (factor / root).T.contiguous(), root.square())
        rests[behind].addmm_(effect, change)

"""The state of all tokens during a pass: residual stream, the normed input of the experts, and who was excluded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType

import torch

from quantkit.forward.states import HiddenStates


@dataclass
class TokenStates:
    """`residual` is float32 [T, H], `normed` [T, H] has the dtype of the matrix products."""

    residual: HiddenStates
    normed: HiddenStates
    alive: torch.Tensor = field(init=False)  # bool [T]: still finite
    excluded: Counter[tuple[int, int | None]] = field(default_factory=Counter)  # tokens by (layer, expert or None)

    def __post_init__(self) -> None:
        self.alive = torch.ones(self.residual.shape[0], dtype=torch.bool, device=self.residual.device)

    def __enter__(self) -> TokenStates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.residual.__exit__(kind, error, trace)
        self.normed.__exit__(kind, error, trace)

    def exclude(self, rows: torch.Tensor, layer: int, expert: int | None) -> None:
        """Leave the tokens `rows` out from here on: their state became NaN or infinite in `layer`, in `expert`.

        Their residual is zero from the next layer on, so that later tokens of the document do not see it.
        """
        fresh = rows[self.alive[rows]]
        if len(fresh):
            self.alive[fresh] = False
            self.excluded[layer, expert] += len(fresh)

    def clear_excluded(self) -> None:
        """Set the residual of excluded tokens to zero."""
        dead = (~self.alive).nonzero().flatten()
        if len(dead):
            self.residual.write(dead, torch.zeros(len(dead), self.residual.shape[1], device=dead.device))

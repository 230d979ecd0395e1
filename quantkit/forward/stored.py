"""What a forward pass needs of a file or folder that holds a model: its tensors by role, however they are packed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch

from quantkit.arrays import Float32
from quantkit.model import minimax_m2
from quantkit.model.spec import HParams, Kind, Role

ROLES = {role.name: role for role in (*minimax_m2.HEAD_ROLES, *minimax_m2.LAYER_ROLES)}
EXPERT_ROLES = tuple(role.name for role in minimax_m2.LAYER_ROLES if role.kind is Kind.EXPERT)

# A role, and its layer if it belongs to one.
Place = tuple[str, int | None]
FIRST_PLACES: list[Place] = [(role.name, None) for role in minimax_m2.FIRST_ROLES]
LAST_PLACES: list[Place] = [(role.name, None) for role in minimax_m2.LAST_ROLES]


class StoredTensors(Protocol):
    """The tensors of a model on disk; used by many threads. `number` is an expert, 0 where a role is not stacked."""

    @property
    def path(self) -> Path:
        """The file or folder, for messages."""
        ...

    @property
    def hparams(self) -> HParams: ...

    def fill(self, role: str, layer: int, number: int, out: torch.Tensor) -> None:
        """Write a whole tensor into `out`, which has its shape, is in main memory, and is bfloat16 or float32."""

    def rows(self, role: str, layer: int | None, rows: tuple[int, int] | None = None) -> Float32:
        """Rows [first, last) of a tensor that is not stacked, or all of it; float32."""
        ...

    def will_need(self, role: str, layer: int, number: int) -> None:
        """Let the system read what `fill` will ask for soon. Returns at once."""

    def expect(self, places: Iterable[Place]) -> None:
        """The tensors of these roles are going to be read, about in this order."""

    def release(self, places: Iterable[Place]) -> None:
        """They will not be read again."""

    def close(self) -> None:
        """Close the files."""


def role_shape(role: Role, hparams: HParams) -> tuple[int, ...]:
    """Shape of one tensor of `role`, without the expert axis."""
    return tuple(minimax_m2.DIMENSIONS[symbol](hparams) for symbol in role.shape)


def layer_places(layer: int) -> list[Place]:
    """Every role of one layer."""
    return [(role.name, layer) for role in minimax_m2.LAYER_ROLES]

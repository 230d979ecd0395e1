"""The tensors of an FP8 or BF16 checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from quantkit.arrays import Float32
from quantkit.checkpoint.index import Checkpoint
from quantkit.checkpoint.reader import Reader
from quantkit.forward.rows import as_numpy
from quantkit.forward.stored import Place
from quantkit.model.spec import HParams, Model, ModelTensor


class CheckpointTensors:
    """Reads the tensors of `checkpoint` that `model` names."""

    def __init__(self, checkpoint: Checkpoint, model: Model) -> None:
        self.checkpoint = checkpoint
        self.reader = Reader(checkpoint, model.block)
        self._hparams = model.hparams
        self._tensors = {(tensor.role.name, tensor.layer): tensor for tensor in model.tensors}

    @property
    def path(self) -> Path:
        return self.checkpoint.folder

    @property
    def hparams(self) -> HParams:
        return self._hparams

    def tensor(self, role: str, layer: int | None = None) -> ModelTensor:
        """Where the tensor of `role` in `layer` is."""
        return self._tensors[role, layer]

    def fill(self, role: str, layer: int, number: int, out: torch.Tensor) -> None:
        """Write a whole tensor into `out`. Raises BadInput where a stored value is not finite."""
        source = self.tensor(role, layer)
        fill_from(self.reader, source.sources[number], source.scales[number], out)

    def rows(self, role: str, layer: int | None, rows: tuple[int, int] | None = None) -> Float32:
        """Rows of a tensor that is not stacked, float32. Errors as `fill`."""
        source = self.tensor(role, layer)
        return self.reader.read_rows(source.sources[0], source.scales[0], rows)

    def will_need(self, role: str, layer: int, number: int) -> None:
        """The weights alone: their scales are few."""
        self.reader.will_need(self.tensor(role, layer).sources[number])

    def expect(self, places: Iterable[Place]) -> None:
        """With their scales."""
        self.reader.expect(self._names(places))

    def release(self, places: Iterable[Place]) -> None:
        """With their scales."""
        self.reader.release(self._names(places))

    def _names(self, places: Iterable[Place]) -> list[str | None]:
        return [name for place in places for name in self._tensors[place].stored_names()]

    def close(self) -> None:
        """Close the shards."""
        self.reader.__exit__(None, None, None)


def fill_from(reader: Reader, name: str, scale: str | None, out: torch.Tensor) -> None:
    """Write the tensor `name`, times its block scales if it has some, into `out`."""
    if out.dtype is torch.bfloat16:
        reader.read_bfloat16(name, scale, as_numpy(out))
    else:
        out.copy_(torch.from_numpy(reader.read_rows(name, scale)))

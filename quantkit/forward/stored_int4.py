"""The tensors of an AWQ, GPTQ or compressed-tensors checkpoint with integers of 4 or 8 bits, whoever made it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from quantkit.arrays import Float32
from quantkit.checkpoint.dequant import to_float32
from quantkit.checkpoint.index import Checkpoint
from quantkit.checkpoint.reader import Reader
from quantkit.errors import BadInput
from quantkit.forward.int4_layouts import PackedMatrix, PlainTensor, lay_out
from quantkit.forward.int4_schemes import read_scheme
from quantkit.forward.integer_kernels import dequantize_groups
from quantkit.forward.rows import as_numpy
from quantkit.forward.stored import Place
from quantkit.forward.stored_checkpoint import fill_from
from quantkit.model.config import hparams_from_config
from quantkit.model.spec import HParams

NUMPY_DTYPES = {"I32": np.int32, "U32": np.int32, "I64": np.int64}


class Int4Tensors:
    """Reads the tensors of `checkpoint`, each packed or as it is."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Raises BadInput for a scheme that is not read here, and for tensors that do not fit it or the model."""
        config = checkpoint.folder / "config.json"
        self._hparams = hparams_from_config(checkpoint.config, config)
        scheme = read_scheme(checkpoint.config, config)
        self._tensors = lay_out(checkpoint, self._hparams, scheme)
        self._checkpoint = checkpoint
        self._reader = Reader(checkpoint, scheme.block)

    @property
    def path(self) -> Path:
        return self._checkpoint.folder

    @property
    def hparams(self) -> HParams:
        return self._hparams

    def fill(self, role: str, layer: int, number: int, out: torch.Tensor) -> None:
        """Write a whole tensor into `out`. A packed matrix's scales that are not finite stay so; elsewhere that is
        BadInput.
        """
        stored = self._tensors[role, layer][number]
        if isinstance(stored, PlainTensor):
            fill_from(self._reader, stored.name, stored.scale, out)
            return
        arrays = {suffix: self._array(name) for suffix, name in stored.names.items()}
        try:
            quantized = stored.layout.unpack(arrays, stored.grid)
        except ValueError as error:
            path = self._checkpoint.tensors[next(iter(stored.names.values()))].path
            raise BadInput(
                f"{path}: tensor {stored.module}: {error}; only files made with desc_act false are read"
            ) from None
        dequantize_groups(quantized.codes, quantized.zeros, quantized.scales, as_numpy(out))

    def rows(self, role: str, layer: int | None, rows: tuple[int, int] | None = None) -> Float32:
        """Rows of a tensor that is not packed, float32."""
        stored = self._tensors[role, layer][0]
        assert isinstance(stored, PlainTensor)
        return self._reader.read_rows(stored.name, stored.scale, rows)

    def will_need(self, role: str, layer: int, number: int) -> None:
        """The weights and, packed, their scales."""
        for name in _names(self._tensors[role, layer][number]):
            self._reader.will_need(name)

    def expect(self, places: Iterable[Place]) -> None:
        """Packed matrices with their scales."""
        self._reader.expect(self._place_names(places))

    def release(self, places: Iterable[Place]) -> None:
        """Packed matrices with their scales."""
        self._reader.release(self._place_names(places))

    def _place_names(self, places: Iterable[Place]) -> list[str]:
        return [name for place in places for stored in self._tensors[place] for name in _names(stored)]

    def close(self) -> None:
        """Close the shards."""
        self._reader.__exit__(None, None, None)

    def _array(self, name: str) -> np.ndarray:
        """A stored tensor of integers as it is, of floats in float32."""
        entry = self._checkpoint.tensors[name]
        parts = list(self._reader.read_bytes(name))
        raw = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if entry.dtype in NUMPY_DTYPES:
            return raw.view(NUMPY_DTYPES[entry.dtype]).reshape(entry.shape)
        return to_float32(raw, entry.dtype, entry.shape)


def _names(stored: PackedMatrix | PlainTensor) -> list[str]:
    """The tensors that make up one matrix."""
    if isinstance(stored, PackedMatrix):
        return list(stored.names.values())
    return [stored.name] if stored.scale is None else [stored.name, stored.scale]

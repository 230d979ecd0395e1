"""The checkpoint formats with packed integers, by name."""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt

from quantkit.formats import awq, compressed_tensors, gptq
from quantkit.formats.safetensors import TensorSpec
from quantkit.formats.scheme import Attention, Scheme
from quantkit.quantize.integers import IntegerGrid, Quantized


class PackedFormat(Protocol):
    """What a module of such a format offers; the arrays are numpy's, bfloat16 as its bits in uint16."""

    NAME: str

    def check(self, grid: IntegerGrid, attention: Attention) -> None:
        """Raise BadInput naming option and remedy when the format cannot hold the grid or the attention."""

    def check_shape(self, name: str, rows: int, columns: int, grid: IntegerGrid) -> None:
        """Raise BadInput naming the tensor when a matrix [N, K] does not fill whole words or groups."""

    def tensors(self, prefix: str, rows: int, columns: int, grid: IntegerGrid) -> list[TensorSpec]:
        """The tensors that the linear weight `prefix` [N, K] becomes; shapes that passed `check_shape`."""
        ...

    def pack(self, quantized: Quantized, grid: IntegerGrid) -> dict[str, npt.NDArray[Any]]:
        """The arrays of `tensors` by suffix, in the same order; ValueError where a value would change."""
        ...

    def unpack(self, arrays: dict[str, npt.NDArray[Any]], grid: IntegerGrid) -> Quantized:
        """Undo `pack`."""
        ...

    def quantization_config(self, scheme: Scheme) -> dict[str, Any]:
        """Value of config.json's "quantization_config"."""
        ...


FORMATS: dict[str, PackedFormat] = {module.NAME: module for module in (awq, gptq, compressed_tensors)}

"""What a search finds for a strip of rows, with rows side by side as in the strip, and its way into packed rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.arrays import Bytes, Float32
from quantkit.formats.gguf.blocks.packing import Blocks, pack
from quantkit.formats.gguf.blocks.table import BlockFormat
from quantkit.quantize.kquants.rows import NotRepresentable
from quantkit.quantize.kquants.tiles import LANES, unload


@dataclass(frozen=True)
class Found:
    """Buffers that a search fills. What the format does not have has the length 0."""

    codes: Bytes  # [K, LANES], indices into the format's levels
    scales: Float32  # [K / block, LANES], d: float16 numbers
    minimums: Float32  # [K / block, LANES], dmin: float16 numbers, subtracted
    scale_codes: npt.NDArray[Any]  # [K / group, LANES], int8 or uint8 as in `Blocks`
    minimum_codes: Bytes  # [K / group, LANES]


def buffers(format: BlockFormat, columns: int) -> Found:
    """Room for what is found in a strip of `columns`."""
    blocks, groups = columns // format.block, columns // format.group
    signed = format.scale_range is not None and format.scale_range[0] < 0
    return Found(
        np.zeros((columns, LANES), np.uint8),
        np.zeros((blocks, LANES), np.float32),
        np.zeros((blocks if format.has_minimum else 0, LANES), np.float32),
        np.zeros((groups if format.scale_range else 0, LANES), np.int8 if signed else np.uint8),
        np.zeros((groups if format.has_minimum_codes else 0, LANES), np.uint8),
    )


def packed(found: Found, format: BlockFormat, count: int) -> Bytes:
    """The first `count` rows as ggml stores them, uint8 [count, bytes per row]."""
    codes = np.empty((count, len(found.codes)), np.uint8)
    unload(found.codes, codes)
    blocks = Blocks(
        codes,
        _halves(found.scales, format, count),
        _halves(found.minimums, format, count) if format.has_minimum else None,
        _turned(found.scale_codes, count) if format.scale_range else None,
        _turned(found.minimum_codes, count) if format.has_minimum_codes else None,
    )
    return pack(blocks, format)


def _turned(array: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    return np.ascontiguousarray(array[:, :count].T)


def _halves(numbers: Float32, format: BlockFormat, count: int) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        halves = _turned(numbers, count).astype(np.float16)
    if not np.isfinite(halves).all():
        raise NotRepresentable(f"a block scale of {format.name} is not finite")
    return halves

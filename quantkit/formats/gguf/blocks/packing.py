"""Rows of ggml's blocks, unpacked into codes, scales and minimums, and packed again; nothing is rounded on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.arrays import Bytes, Float32
from quantkit.formats.gguf.blocks.fields import put, take
from quantkit.formats.gguf.blocks.table import BlockFormat
from quantkit.formats.gguf.types import block_size

Float16 = npt.NDArray[np.float16]
Int8 = npt.NDArray[np.int8]

# The exponents of MXFP4 are stored with this added.
EXPONENT_BIAS = 128


@dataclass(frozen=True)
class Blocks:
    """Rows of blocks of one format; `values` says what weights they are.

    d is float16, for MXFP4 float32 and a power of two from 2^-128 to 2^127. dmin is subtracted in every format: where
    ggml adds a minimum, its sign is changed. Scale codes are int8 where the format's range has negative ones.
    """

    codes: Bytes  # [N, K], indices into the format's levels
    scales: Float16 | Float32  # [N, K / block], d
    minimums: Float16 | None = None  # [N, K / block], dmin
    scale_codes: Int8 | Bytes | None = None  # [N, K / group], the integers as meant, without ggml's bias
    minimum_codes: Bytes | None = None  # [N, K / group]


def pack(blocks: Blocks, format: BlockFormat) -> Bytes:
    """Return the rows as ggml stores them, uint8 [N, bytes per row].

    ValueError where shapes or dtypes are not the format's, or a code or a power of two is beyond its range.
    """
    _check(blocks, format)
    rows, columns = blocks.codes.shape
    count = rows * (columns // format.block)
    packed = np.zeros((count, block_size(format.name)[1]), np.uint8)
    codes = blocks.codes + np.uint8(format.code_bias) if format.code_bias else blocks.codes
    put(codes.reshape(count, format.block), format.code_fields, packed)
    if blocks.scale_codes is not None:
        stored = blocks.scale_codes.view(np.uint8) + np.uint8(format.scale_bias)
        put(stored.reshape(count, format.groups), format.scale_fields, packed)
    if blocks.minimum_codes is not None:
        put(blocks.minimum_codes.reshape(count, format.groups), format.minimum_fields, packed)
    if format.scale_is_exponent:
        packed[:, format.scale_byte] = _exponents(blocks.scales).reshape(count)
    else:
        _put_float16(blocks.scales, packed, format.scale_byte)
    if blocks.minimums is not None and format.minimum_byte is not None:
        _put_float16(-blocks.minimums if format.minimum_is_added else blocks.minimums, packed, format.minimum_byte)
    return packed.reshape(rows, columns // format.block * packed.shape[1])


def unpack(packed: Bytes, format: BlockFormat, columns: int) -> Blocks:
    """Undo `pack`: rows of `columns` weights from uint8 [N, bytes per row]; ValueError where the sizes do not fit."""
    rows, size = len(packed), block_size(format.name)[1]
    if columns % format.block or packed.shape[1] != columns // format.block * size:
        raise ValueError(f"{packed.shape[1]} bytes are not a row of {columns} weights in {format.name}")
    each_block, each_group = (rows, columns // format.block), (rows, columns // format.group)
    stored_blocks = packed.reshape(rows * each_block[1], size)
    codes = take(stored_blocks, format.code_fields, format.block)
    if format.code_bias:
        codes -= np.uint8(format.code_bias)
    scales: Float16 | Float32
    if format.scale_is_exponent:
        exponents = stored_blocks[:, format.scale_byte].astype(np.int32) - EXPONENT_BIAS
        scales = np.ldexp(np.float32(1), exponents)
    else:
        scales = _take_float16(stored_blocks, format.scale_byte)
    minimums: Float16 | None = None
    scale_codes: Int8 | Bytes | None = None
    minimum_codes: Bytes | None = None
    if format.minimum_byte is not None:
        stored = _take_float16(stored_blocks, format.minimum_byte)
        minimums = (-stored if format.minimum_is_added else stored).reshape(each_block)
    if format.scale_range is not None:
        wrapped = take(stored_blocks, format.scale_fields, format.groups) - np.uint8(format.scale_bias)
        scale_codes = wrapped.view(_scale_code_type(format)).reshape(each_group)
    if format.has_minimum_codes:
        minimum_codes = take(stored_blocks, format.minimum_fields, format.groups).reshape(each_group)
    return Blocks(codes.reshape(rows, columns), scales.reshape(each_block), minimums, scale_codes, minimum_codes)


def grid(blocks: Blocks, format: BlockFormat) -> tuple[Float32, Float32]:
    """Return step and offset of every group, float32 [N, K / group] each; both are exact."""
    steps = _times_codes(blocks.scales, blocks.scale_codes)
    if blocks.minimums is None:
        return steps, np.zeros_like(steps)
    return steps, _times_codes(blocks.minimums, blocks.minimum_codes)


def values(blocks: Blocks, format: BlockFormat) -> Float32:
    """Return the weights step * level - offset, float32 [N, K], as all of ggml's dequantizers compute them.

    The product has at most 23 significant bits, so it is exact: only the subtraction rounds, and it does not matter
    whether a processor fuses the two.
    """
    steps, offsets = grid(blocks, format)
    weights = np.take(np.array(format.levels, np.float32), blocks.codes)
    by_group = weights.reshape(*steps.shape, format.group)
    by_group *= steps[..., None]
    if format.has_minimum:
        by_group -= offsets[..., None]
    return weights


def _times_codes(factors: Float16 | Float32, codes: Int8 | Bytes | None) -> Float32:
    """Block factors [N, K / block] times the codes of their groups [N, K / group], float32."""
    wide = factors.astype(np.float32)
    if codes is None:
        return wide
    product = codes.astype(np.float32)
    by_block = product.reshape(*wide.shape, codes.shape[1] // wide.shape[1])
    by_block *= wide[..., None]
    return product


def _put_float16(numbers: Float16 | Float32, packed: Bytes, byte: int) -> None:
    packed[:, byte : byte + 2] = np.ascontiguousarray(numbers, "<f2").reshape(-1, 1).view(np.uint8)


def _take_float16(packed: Bytes, byte: int) -> Float16:
    return np.ascontiguousarray(packed[:, byte : byte + 2]).view("<f2").astype(np.float16, copy=False)


def _exponents(powers: Float16 | Float32) -> Bytes:
    """The stored exponents of powers of two; ValueError where a number is none, or beyond the range."""
    fractions, exponents = np.frexp(powers)
    # frexp's fractions begin at 1/2.
    stored = exponents + (EXPONENT_BIAS - 1)
    if np.any(fractions != 0.5) or np.any((stored < 0) | (stored > 255)):
        raise ValueError("a scale is not a power of two from 2^-128 to 2^127")
    return stored.astype(np.uint8)


def _scale_code_type(format: BlockFormat) -> np.dtype[Any]:
    return np.dtype(np.int8 if format.scale_range is not None and format.scale_range[0] < 0 else np.uint8)


def _check(blocks: Blocks, format: BlockFormat) -> None:
    rows, columns = blocks.codes.shape
    if columns % format.block:
        raise ValueError(f"rows of {columns} weights are not whole blocks of {format.name}")
    each_block, each_group = (rows, columns // format.block), (rows, columns // format.group)
    ranged = format.scale_range is not None
    low, high = format.scale_range or (0, 0)
    scale_type = np.float32 if format.scale_is_exponent else np.float16
    _check_array("scales", blocks.scales, each_block, scale_type, True)
    _check_array("minimums", blocks.minimums, each_block, np.float16, format.has_minimum)
    _check_array("scale_codes", blocks.scale_codes, each_group, _scale_code_type(format), ranged)
    _check_array("minimum_codes", blocks.minimum_codes, each_group, np.uint8, format.has_minimum_codes)
    _check_array("codes", blocks.codes, (rows, columns), np.uint8, True)
    _check_range("codes", blocks.codes, 0, len(format.levels) - 1)
    _check_range("scale_codes", blocks.scale_codes, low, high)
    _check_range("minimum_codes", blocks.minimum_codes, 0, high)


def _check_array(
    name: str, array: npt.NDArray[Any] | None, shape: tuple[int, int], kind: npt.DTypeLike, wanted: bool
) -> None:
    if not wanted and array is not None:
        raise ValueError(f"this format has no {name}")
    if wanted and (array is None or array.shape != shape or array.dtype != kind):
        found = "missing" if array is None else f"{array.dtype} {array.shape}"
        raise ValueError(f"{name} are {found}, not {np.dtype(kind)} {shape}")


def _check_range(name: str, codes: Int8 | Bytes | None, low: int, high: int) -> None:
    if codes is not None and codes.size and (codes.min() < low or codes.max() > high):
        raise ValueError(f"{name} from {codes.min()} to {codes.max()} are not within {low} and {high}")

"""Stored weights to float32 or bfloat16. FP8 blocks *multiply* by `weight_scale_inv`, despite its name.

The kernels decode e4m3 (OCP FP8: no infinities, 0x7F and 0xFF are NaN) by moving bits, which compilers turn
into vector instructions; a table of the 256 values cannot be.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quantkit.arrays import Bfloat16Bits, Bytes, Float32
from quantkit.bits import U16, float_from_half_bits, narrow

BIAS = np.float32(2.0**8)  # between the exponents of e4m3 and of float16
NAN_CODE = np.uint8(0x7F)
LOW_BITS, LAST_BITS, FIRST_BITS = (np.uint64(0x0101010101010101 * byte) for byte in (0x7F, 0x01, 0x80))
BFLOAT16_EXPONENT = np.uint16(0x7F80)
# 448, the largest e4m3 value, times this is still a bfloat16. Not so for an infinite or NaN scale.
LARGEST_SAFE_SCALE = np.float32(7e35)


def dequantize_fp8_blocks(codes: Bytes, scale: Float32, block: tuple[int, int], first_row: int = 0) -> Float32:
    """Return e4m3 `codes` [R, K] times their block scales, as float32 [R, K].

    `scale` is [ceil(N / block[0]), ceil(K / block[1])] for the whole matrix [N, K] of which `codes` holds the rows
    from `first_row` on. A NaN code or scale gives NaN: the caller checks.
    """
    out = np.empty(codes.shape, np.float32)
    _blocks_to_float32(codes, scale, block[0], block[1], first_row, out)
    if _has_nan_code(codes.reshape(-1)):
        out[(codes & 0x7F) == NAN_CODE] = np.nan
    return out


def dequantize_fp8_to_bfloat16(codes: Bytes, scale: Float32, block: tuple[int, int], out: Bfloat16Bits) -> bool:
    """Write `codes` [N, K] times their block scales into `out` [N, K], rounded to bfloat16; tell if all are finite."""
    _blocks_to_bfloat16(codes, scale, block[0], block[1], out)
    return are_finite_fp8(codes, scale)


def largest_of_fp8(codes: Bytes, scale: Float32, block: tuple[int, int], first_row: int = 0) -> float:
    """Return the largest magnitude of e4m3 `codes` [R, K] times their block scales, none of them NaN.

    `scale` and `first_row` are as of `dequantize_fp8_blocks`.
    """
    return float(_largest_of_blocks(codes, scale, block[0], block[1], first_row))


def are_finite_fp8(codes: Bytes, scale: Float32) -> bool:
    """Whether e4m3 `codes` [R, K] times any of the finite scales `scale` [R, C] are numbers that float32 holds."""
    products_fit = bool(np.abs(scale).max(initial=0) < LARGEST_SAFE_SCALE)
    return products_fit and not _has_nan_code(codes.reshape(-1))


@numba.njit(inline="always")
def decode(code: Any) -> Any:
    """One e4m3 code as float32, times 2^-8: its bits are those of a float16, subnormals included, but for the bias.

    The NaN codes come out as numbers; looking for them here would cost half of the speed.
    """
    bits = U16(code)
    return float_from_half_bits(((bits & U16(0x80)) << U16(8)) | ((bits & U16(0x7F)) << U16(7)))


def _has_nan_code(codes: Bytes) -> bool:
    """Whether one of the codes [N] is 0x7F or 0xFF."""
    whole = len(codes) // 8 * 8
    tail = codes[whole:]
    return bool(_has_nan_word(codes[:whole].view(np.uint64)) or ((tail & NAN_CODE) == NAN_CODE).any())


@numba.njit(nogil=True, cache=True)
def _has_nan_word(words: Any) -> Any:
    # Eight codes at a time: a NaN code becomes a zero byte, and a borrow betrays zero bytes.
    found = np.uint64(0)
    for index in range(words.shape[0]):
        zero = (words[index] & LOW_BITS) ^ LOW_BITS
        found |= (zero - LAST_BITS) & ~zero & FIRST_BITS
    return found != 0


@numba.njit(nogil=True, cache=True)
def _blocks_to_float32(
    codes: Bytes, scale: Float32, block_rows: int, block_columns: int, first_row: int, out: Float32
) -> None:
    rows, columns = codes.shape
    for row in range(rows):
        scales = scale[(first_row + row) // block_rows]
        for block in range(scales.shape[0]):
            factor = scales[block] * BIAS
            begin, end = block * block_columns, min((block + 1) * block_columns, columns)
            source, target = codes[row, begin:end], out[row, begin:end]
            for column in range(end - begin):
                target[column] = decode(source[column]) * factor


@numba.njit(nogil=True, cache=True)
def _largest_of_blocks(codes: Bytes, scale: Float32, block_rows: int, block_columns: int, first_row: int) -> Any:
    rows, columns = codes.shape
    most = np.float32(0)
    for row in range(rows):
        scales = scale[(first_row + row) // block_rows]
        for block in range(scales.shape[0]):
            source = codes[row, block * block_columns : min((block + 1) * block_columns, columns)]
            # Without their sign, larger codes are larger numbers.
            largest = np.uint8(0)
            for column in range(source.shape[0]):
                largest = max(largest, np.uint8(source[column] & np.uint8(0x7F)))
            most = max(most, decode(largest) * BIAS * abs(scales[block]))
    return most


@numba.njit(nogil=True, cache=True)
def _blocks_to_bfloat16(codes: Bytes, scale: Float32, block_rows: int, block_columns: int, out: Bfloat16Bits) -> None:
    rows, columns = codes.shape
    for row in range(rows):
        scales = scale[row // block_rows]
        for block in range(scales.shape[0]):
            factor = scales[block] * BIAS
            begin, end = block * block_columns, min((block + 1) * block_columns, columns)
            source, target = codes[row, begin:end], out[row, begin:end]
            for column in range(end - begin):
                target[column] = narrow(decode(source[column]) * factor)


def to_float32(raw: Bytes, dtype: str, shape: tuple[int, ...]) -> Float32:
    """Return the stored bytes of a BF16, F16 or F32 tensor as float32 of `shape`; exact."""
    if dtype == "BF16":
        wide = raw.view(np.uint16).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32).reshape(shape)
    if dtype == "F16":
        return raw.view(np.float16).astype(np.float32).reshape(shape)
    if dtype == "F32":
        return raw.view(np.float32).reshape(shape)
    raise ValueError(f"no float32 conversion for dtype {dtype}")


def to_bfloat16(values: Float32, out: Bfloat16Bits) -> None:
    """Write float32 `values` [N, K] into `out` [N, K], rounded to the nearest bfloat16."""
    _round_to_bfloat16(np.ascontiguousarray(values).reshape(-1), out.reshape(-1))


@numba.njit(nogil=True, cache=True)
def _round_to_bfloat16(values: Float32, out: Bfloat16Bits) -> None:
    for index in range(values.shape[0]):
        out[index] = narrow(values[index])

"""Stored weights to float32. FP8 blocks *multiply* by `weight_scale_inv`, despite its name (m2 checkpoint format)."""

from __future__ import annotations

import numba
import numpy as np

from quantkit.arrays import Bytes, Float32


def _e4m3_table() -> Float32:
    """The 256 values of float8 e4m3fn (OCP FP8): no infinities, 0x7F and 0xFF are NaN."""
    codes = np.arange(256)
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent = (codes >> 3) & 0xF
    mantissa = codes & 0x7
    normal = (1 + mantissa / 8) * np.exp2(exponent - 7.0)
    subnormal = mantissa / 8 * 2.0**-6
    values = sign * np.where(exponent == 0, subnormal, normal)
    values[(codes & 0x7F) == 0x7F] = np.nan
    return values.astype(np.float32)


E4M3 = _e4m3_table()


def dequantize_fp8_blocks(codes: Bytes, scale: Float32, block: tuple[int, int], first_row: int = 0) -> Float32:
    """Return e4m3 `codes` [R, K] times their block scales, as float32 [R, K].

    `scale` is [ceil(N / block[0]), ceil(K / block[1])] for the whole matrix [N, K] of which `codes` holds the rows
    from `first_row` on. A NaN code or scale gives NaN: the caller checks.
    """
    out = np.empty(codes.shape, np.float32)
    _multiply_blocks(codes, scale, E4M3, block[0], block[1], first_row, out)
    return out


@numba.njit(nogil=True, cache=True)
def _multiply_blocks(
    codes: Bytes, scale: Float32, table: Float32, block_rows: int, block_columns: int, first_row: int, out: Float32
) -> None:
    rows, columns = codes.shape
    for row in range(rows):
        scales = scale[(first_row + row) // block_rows]
        for block in range(scales.shape[0]):
            factor = scales[block]
            for column in range(block * block_columns, min((block + 1) * block_columns, columns)):
                out[row, column] = table[codes[row, column]] * factor


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

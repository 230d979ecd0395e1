"""Strips against numpy's transposition and the dequantizer of whole matrices, bit for bit; float16 against numpy's."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from quantkit.arrays import Bytes, Float32
from quantkit.checkpoint.dequant import dequantize_fp8_blocks
from quantkit.quantize.kquants.arithmetic import nearest_half
from quantkit.quantize.kquants.rows import Rows
from quantkit.quantize.kquants.tiles import LANES, load, unload

# Whole strips, parts of squares, single rows; whole blocks of columns and odd numbers of them.
SHAPES = [(1, 32), (7, 256), (LANES, 256), (LANES + 1, 288), (2 * LANES + 13, 77), (3 * LANES, 1)]


def floats(rows: int, columns: int) -> Float32:
    return np.random.default_rng(1).standard_normal((rows, columns), dtype=np.float32)


def fp8(rows: int, columns: int) -> tuple[Bytes, Float32]:
    """Codes of all numbers that e4m3 has, and different scales for every block of a matrix of 400 rows."""
    random = np.random.default_rng(2)
    codes = random.integers(0, 256, (rows, columns), np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0  # NaN
    return codes, random.uniform(1e-4, 1e-2, (4, (columns + 127) // 128)).astype(np.float32)


def strips(rows: Rows) -> Float32:
    """The rows as they come out of all strips, what is behind the last row included."""
    count, columns = rows.shape
    parts = []
    for first in range(0, count, LANES):
        strip = np.full((columns, LANES), np.nan, np.float32)  # nothing of an earlier strip may shine through
        assert load(rows, first, strip) == min(LANES, count - first)
        parts.append(strip.T)
    return np.concatenate(parts)


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_turned(shape: tuple[int, int]) -> None:
    values = floats(*shape)
    found = strips(Rows(values))
    np.testing.assert_array_equal(found[: shape[0]], values)
    assert not found[shape[0] :].any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("first_row", [0, 100, 127])
def test_fp8_is_turned_and_decoded(shape: tuple[int, int], first_row: int) -> None:
    codes, scale = fp8(*shape)
    rows = Rows(codes=codes, scale=scale, first_row=first_row)
    found = strips(rows)
    np.testing.assert_array_equal(found[: shape[0]], dequantize_fp8_blocks(codes, scale, (128, 128), first_row))
    np.testing.assert_array_equal(found[: shape[0]], rows.float32())
    assert not found[shape[0] :].any()


@pytest.mark.parametrize("rows", [1, 15, 16, 33, LANES])
def test_codes_are_turned_back(rows: int) -> None:
    turned = np.random.default_rng(3).integers(0, 256, (96, LANES), np.uint8)
    out = np.empty((rows, 96), np.uint8)
    unload(turned, out)
    np.testing.assert_array_equal(out, turned[:, :rows].T)


def test_rows_are_one_or_the_other() -> None:
    values, (codes, scale) = floats(2, 32), fp8(2, 32)
    for wrong in ({}, {"codes": codes}, {"values": values, "scale": scale}, {"values": values, "codes": codes}):
        with pytest.raises(ValueError, match="either"):
            Rows(**wrong)
    with pytest.raises(ValueError, match="without gaps"):
        Rows(floats(32, 32)[:, :16])


@numba.njit
def halves(values: Float32, out: Float32) -> None:
    for index in range(len(values)):
        out[index] = nearest_half(values[index])


def test_nearest_half_is_numpys() -> None:
    """From below the smallest subnormal number to beyond the largest, with all ties between two neighbours."""
    numbers = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (numbers[:-1] + numbers[1:]) / 2
    values = np.concatenate([numbers, middles, np.nextafter(middles, np.float32(0)), [65519, 65520, 1e30, 1e-30]])
    values = np.concatenate([values, -values]).astype(np.float32)
    found = np.empty_like(values)
    halves(values, found)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found, values.astype(np.float16).astype(np.float32))

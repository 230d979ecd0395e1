"""Stored weights to float32, against torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.checkpoint.dequant import (
    dequantize_fp8_blocks,
    dequantize_fp8_to_bfloat16,
    largest_of_fp8,
    to_bfloat16,
    to_float32,
)


def bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32)


def test_every_code_is_torchs() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(1, 256)
    ours = dequantize_fp8_blocks(codes, np.ones((1, 1), np.float32), (1, 256))[0]
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    assert np.flatnonzero(np.isnan(ours)).tolist() == [0x7F, 0xFF]
    numbers = ~np.isnan(theirs)
    assert np.array_equal(bits(ours)[numbers], bits(theirs)[numbers])  # the sign of zero as well


def torch_dequantize(codes: np.ndarray, scale: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    rows, columns = codes.shape
    wide = torch.from_numpy(scale).repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return (torch.from_numpy(codes).view(torch.float8_e4m3fn).float() * wide).numpy()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    block=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    seed=st.integers(0, 2**32 - 1),
)
def test_blocks_multiply_as_in_torch(rows: int, columns: int, block: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 0x7F, (rows, columns), dtype=np.uint8) | (rng.integers(0, 2, (rows, columns)) << 7)
    codes = codes.astype(np.uint8)
    scale = np.exp(rng.normal(-8, 3, (-(-rows // block[0]), -(-columns // block[1])))).astype(np.float32)
    expected = torch_dequantize(codes, scale, block)
    assert np.array_equal(bits(dequantize_fp8_blocks(codes, scale, block)), bits(expected))
    first = int(rng.integers(0, rows))
    last = int(rng.integers(first, rows)) + 1
    part = dequantize_fp8_blocks(codes[first:last], scale, block, first)
    assert np.array_equal(bits(part), bits(expected[first:last]))
    assert largest_of_fp8(codes[first:last], scale, block, first) == np.abs(expected[first:last]).max()


def test_a_ragged_last_block_has_its_own_scale() -> None:
    # 0x38 is 1.0: the result shows which scale each weight got.
    codes = np.full((3, 5), 0x38, np.uint8)
    scale = np.array([[1, 2], [3, 4]], np.float32)
    expected = [[1, 1, 1, 1, 2], [1, 1, 1, 1, 2], [3, 3, 3, 3, 4]]
    assert dequantize_fp8_blocks(codes, scale, (2, 4)).tolist() == expected


def test_the_official_block_at_a_row_in_the_middle() -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 0x7F, (384, 256), dtype=np.uint8)
    scale = rng.random((3, 2), dtype=np.float32)
    part = dequantize_fp8_blocks(codes[127:257], scale, (128, 128), 127)
    assert np.array_equal(part, torch_dequantize(codes, scale, (128, 128))[127:257])


@pytest.mark.parametrize(("code", "scale"), [(0x7F, 1.0), (0xFF, 1.0), (0x38, np.nan), (0x38, np.inf)])
def test_what_is_not_a_number_stays_visible(code: int, scale: float) -> None:
    codes = np.full((1, 1), code, np.uint8)
    assert not np.isfinite(dequantize_fp8_blocks(codes, np.full((1, 1), scale, np.float32), (1, 1))).any()


@pytest.mark.parametrize(("dtype", "stored"), [("BF16", torch.bfloat16), ("F16", torch.float16)], ids=["BF16", "F16"])
def test_every_sixteen_bit_number_is_exact(dtype: str, stored: torch.dtype) -> None:
    codes = np.arange(2**16, dtype=np.uint16)
    ours = to_float32(codes.view(np.uint8), dtype, (2**16,))
    theirs = torch.from_numpy(codes.view(np.int16)).view(stored).float().numpy()
    assert ours.dtype == np.float32
    numbers = ~np.isnan(theirs)
    assert np.array_equal(np.isnan(ours), ~numbers)
    assert np.array_equal(bits(ours)[numbers], bits(theirs)[numbers])


def test_f32_is_taken_as_it_is() -> None:
    values = torch.randn(4, 3)
    ours = to_float32(values.numpy().view(np.uint8).reshape(-1), "F32", (4, 3))
    assert np.array_equal(bits(ours), bits(values.numpy()))


def test_other_dtypes_have_no_conversion() -> None:
    with pytest.raises(ValueError, match="no float32 conversion for dtype I32"):
        to_float32(np.zeros(4, np.uint8), "I32", (1,))


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), block=st.integers(1, 17), seed=st.integers(0, 2**32 - 1))
def test_bfloat16_is_torchs_rounding_of_the_float32_product(rows: int, columns: int, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 0x7F, (rows, columns), dtype=np.uint8)
    scale = np.exp(rng.normal(-8, 3, (-(-rows // block), -(-columns // block)))).astype(np.float32)
    out = np.empty(codes.shape, np.uint16)
    assert dequantize_fp8_to_bfloat16(codes, scale, (block, block), out)
    wide = torch.from_numpy(torch_dequantize(codes, scale, (block, block)))
    assert np.array_equal(out, wide.bfloat16().view(torch.uint16).numpy())
    again = np.empty_like(out)
    to_bfloat16(wide.numpy(), again)
    assert np.array_equal(again, out)


def test_a_nan_code_and_an_overflowing_scale_are_not_finite() -> None:
    codes = np.full((2, 4), 0x38, np.uint8)
    out = np.empty(codes.shape, np.uint16)
    ones = np.ones((1, 1), np.float32)
    assert dequantize_fp8_to_bfloat16(codes, ones, (2, 4), out)
    assert not dequantize_fp8_to_bfloat16(codes, ones * np.float32(np.inf), (2, 4), out)
    codes[1, 2] = 0xFF
    assert not dequantize_fp8_to_bfloat16(codes, ones, (2, 4), out)

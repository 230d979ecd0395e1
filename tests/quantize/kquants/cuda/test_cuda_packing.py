"""Packing and turning in torch, against the same on the CPU by numpy and numba."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantkit.checkpoint.dequant import dequantize_fp8_blocks
from quantkit.formats.gguf.blocks.packing import Blocks, pack
from quantkit.formats.gguf.blocks.table import FORMATS, BlockFormat
from quantkit.quantize.kquants.cuda.found import buffers, finite, packed
from quantkit.quantize.kquants.cuda.turned import turn, turn_fp8

TYPES = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q5_0", "Q8_0"]
ROWS, COLUMNS = 5, 512


def random_blocks(format: BlockFormat) -> Blocks:
    """Anything that the format can hold."""
    random = np.random.default_rng(3)
    blocks, groups = (ROWS, COLUMNS // format.block), (ROWS, COLUMNS // format.group)
    signed = format.scale_range is not None and format.scale_range[0] < 0
    low, high = format.scale_range or (0, 0)
    scale_codes = random.integers(low, high, groups, np.int8 if signed else np.uint8, endpoint=True)
    return Blocks(
        random.integers(0, len(format.levels) - 1, (ROWS, COLUMNS), np.uint8, endpoint=True),
        random.standard_normal(blocks).astype(np.float16),
        random.standard_normal(blocks).astype(np.float16) if format.has_minimum else None,
        scale_codes if format.scale_range else None,
        random.integers(0, high, groups, np.uint8, endpoint=True) if format.has_minimum_codes else None,
    )


@pytest.mark.parametrize("name", TYPES)
def test_packed_bytes_equal_the_cpus(name: str, card: torch.device) -> None:
    format = FORMATS[name]
    blocks, found = random_blocks(format), buffers(format, COLUMNS, ROWS, card)
    found.codes.copy_(torch.from_numpy(blocks.codes.T))
    found.scales.copy_(torch.from_numpy(blocks.scales.T))
    if found.minimums is not None and blocks.minimums is not None:
        found.minimums.copy_(torch.from_numpy(blocks.minimums.T))
    if found.scale_codes is not None and blocks.scale_codes is not None:
        found.scale_codes.copy_(torch.from_numpy(blocks.scale_codes.T))
    if found.minimum_codes is not None and blocks.minimum_codes is not None:
        found.minimum_codes.copy_(torch.from_numpy(blocks.minimum_codes.T))
    np.testing.assert_array_equal(packed(found, format).cpu().numpy(), pack(blocks, format))


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_scales_beyond_float16_are_seen(name: str, card: torch.device) -> None:
    found = buffers(FORMATS[name], COLUMNS, ROWS, card)
    for numbers in (found.scales, found.minimums):
        if numbers is not None:
            numbers.fill_(1)
    assert finite(found)
    for numbers in (found.scales, found.minimums):
        if numbers is not None:
            numbers[0, 3] = torch.inf
            assert not finite(found)
            numbers[0, 3] = 1


def test_fp8_is_decoded_as_on_the_cpu(card: torch.device) -> None:
    """Every code but NaN, in a piece of a matrix that begins and ends inside of blocks."""
    random = np.random.default_rng(4)
    codes = random.integers(0, 256, (70, 160), np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0
    scale = random.standard_normal((2, 2)).astype(np.float32)
    found = turn_fp8(torch.from_numpy(codes).to(card), torch.from_numpy(scale).to(card), (128, 128), 90)
    np.testing.assert_array_equal(found.cpu().numpy(), dequantize_fp8_blocks(codes, scale, (128, 128), 90).T)


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_nan_codes_stay_nan(code: int, card: torch.device) -> None:
    codes = torch.zeros(3, 32, dtype=torch.uint8, device=card)
    codes[1, 7] = code
    found = turn_fp8(codes, torch.ones(1, 1, device=card), (128, 128), 0)
    assert found.isnan().nonzero().tolist() == [[7, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_wider_types_keep_their_values(dtype: torch.dtype, card: torch.device) -> None:
    values = torch.randn(7, 64, device=card).to(dtype)
    found = turn(values)
    assert found.is_contiguous()
    assert torch.equal(found, values.float().t())

"""Blocks of ggml against ggml's quantizer, its dequantizer and gguf-py's: every bit of a block, every type."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from quantkit.arrays import Bytes, Float32
from quantkit.formats.gguf.blocks.packing import Blocks, grid, pack, unpack, values
from quantkit.formats.gguf.blocks.table import FORMATS, BlockFormat
from quantkit.formats.gguf.types import block_size, row_bytes
from quantkit.quantize import ggml
from quantkit.quantize.ggml_blocks import dequantize

ROWS = 24
every_format = pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
with_scale_codes = pytest.mark.parametrize(
    "format", [format for format in FORMATS.values() if format.scale_range], ids=lambda format: format.name
)
blocks_per_row = pytest.mark.parametrize("count", [1, 6, 12])


def weights_of_all_sizes(columns: int) -> Float32:
    """Rows from 1e-6 to 1e3, with ordinary groups beside groups of zeros, columns of outliers and a row of zeros."""
    random = np.random.default_rng(columns)
    weights = random.standard_normal((ROWS, columns)) * np.logspace(-6, 3, ROWS)[:, None]
    weights[1::3, 7::61] *= 20
    weights[2::4, 16:48] = 0
    weights[3::4, ::2] = 0
    weights[5] = np.abs(weights[5])
    weights[-1] = 0
    return weights.astype(np.float32)


def random_blocks(format: BlockFormat, columns: int, seed: int = 0) -> Blocks:
    """Codes and scale codes over their whole ranges, finite block scales of both signs."""
    random = np.random.default_rng(seed)
    each_block, each_group = (ROWS, columns // format.block), (ROWS, columns // format.group)

    def halves() -> npt.NDArray[np.float16]:
        # All bits but the uppermost of the exponent: below 2 in magnitude, subnormal numbers and both zeros included.
        return (random.integers(0, 1 << 16, each_block).astype(np.uint16) & 0xBFFF).view(np.float16)

    codes = random.integers(0, len(format.levels), (ROWS, columns)).astype(np.uint8)
    # 2^-128 to 2^123: the largest level, 12, stays within float32.
    powers = np.ldexp(np.float32(1), random.integers(-128, 124, each_block).astype(np.int32))
    blocks = Blocks(codes, powers if format.scale_is_exponent else halves(), halves() if format.has_minimum else None)
    if format.scale_range is None:
        return blocks
    low, high = format.scale_range
    scale_codes = random.integers(low, high + 1, each_group).astype(np.int8 if low < 0 else np.uint8)
    minimum_codes = random.integers(0, high + 1, each_group).astype(np.uint8) if format.has_minimum else None
    return replace(blocks, scale_codes=scale_codes, minimum_codes=minimum_codes)


def plain_blocks(format: BlockFormat, rows: int) -> Blocks:
    """One block per row in which each weight is its level: steps of 1 and offsets of 0."""
    ones = np.ones((rows, 1), np.float32 if format.scale_is_exponent else np.float16)
    blocks = Blocks(np.zeros((rows, format.block), np.uint8), ones, 0 * ones if format.has_minimum else None)
    if format.scale_range is None:
        return blocks
    codes = np.ones((rows, format.groups), np.int8 if format.scale_range[0] < 0 else np.uint8)
    return replace(blocks, scale_codes=codes, minimum_codes=0 * codes if format.has_minimum else None)


def assert_same_bits(left: Float32, right: Float32) -> None:
    """Equal bit for bit, signs of zeros included."""
    assert left.dtype == right.dtype == np.float32
    np.testing.assert_array_equal(left.view(np.uint32), right.view(np.uint32))


def assert_same_blocks(left: Blocks, right: Blocks) -> None:
    for field in fields(Blocks):
        ours, theirs = getattr(left, field.name), getattr(right, field.name)
        assert (ours is None) == (theirs is None), field.name
        if ours is not None:
            assert ours.dtype == theirs.dtype, field.name
            assert ours.shape == theirs.shape, field.name
            assert ours.tobytes() == theirs.tobytes(), field.name


def read_by_gguf(packed: Bytes, format: BlockFormat) -> Float32:
    return np.asarray(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[format.name]), np.float32)


@every_format
@blocks_per_row
def test_blocks_of_ggml_come_back_and_mean_the_same(format: BlockFormat, count: int) -> None:
    columns = count * format.block
    packed = ggml.quantize(weights_of_all_sizes(columns), format.name)
    blocks = unpack(packed, format, columns)
    assert np.isfinite(blocks.scales).all()
    np.testing.assert_array_equal(pack(blocks, format), packed)
    assert_same_bits(values(blocks, format), dequantize(packed, format.name, columns))
    assert_same_bits(values(blocks, format), read_by_gguf(packed, format))


@every_format
@blocks_per_row
def test_chosen_codes_and_scales_are_what_ggml_reads(format: BlockFormat, count: int) -> None:
    columns = count * format.block
    blocks = random_blocks(format, columns)
    packed = pack(blocks, format)
    assert packed.dtype == np.uint8
    assert packed.shape == (ROWS, row_bytes(format.name, columns))
    assert_same_blocks(unpack(packed, format, columns), blocks)
    assert_same_bits(values(blocks, format), dequantize(packed, format.name, columns))
    assert_same_bits(values(blocks, format), read_by_gguf(packed, format))


@every_format
def test_every_bit_of_a_block_is_kept(format: BlockFormat) -> None:
    size = block_size(format.name)[1]
    packed = np.random.default_rng(0).integers(0, 256, (ROWS, 6 * size)).astype(np.uint8)
    single = np.packbits(np.eye(8 * size, dtype=np.uint8), axis=1)
    for rows, count in ((packed, 6), (single, 1), (~single, 1)):
        np.testing.assert_array_equal(pack(unpack(rows, format, count * format.block), format), rows)


@every_format
def test_each_code_lands_in_its_own_column(format: BlockFormat) -> None:
    for other in range(1, len(format.levels)):
        blocks = plain_blocks(format, format.block)
        np.fill_diagonal(blocks.codes, other)
        expected = np.full((format.block, format.block), format.levels[0], np.float32)
        np.fill_diagonal(expected, format.levels[other])
        np.testing.assert_array_equal(dequantize(pack(blocks, format), format.name, format.block), expected)


@with_scale_codes
def test_each_scale_code_lands_on_its_own_group(format: BlockFormat) -> None:
    assert format.scale_range is not None
    # A level that differs from 0, so that the scale shows.
    highest = len(format.levels) - 1
    for scale in range(format.scale_range[0], format.scale_range[1] + 1):
        blocks = plain_blocks(format, format.groups)
        assert blocks.scale_codes is not None
        blocks.codes[:] = highest
        np.fill_diagonal(blocks.scale_codes, scale)
        expected = np.ones((format.groups, format.groups), np.float32)
        np.fill_diagonal(expected, scale)
        expected = expected.repeat(format.group, axis=1) * np.float32(format.levels[highest])
        np.testing.assert_array_equal(dequantize(pack(blocks, format), format.name, format.block), expected)


@with_scale_codes
def test_each_minimum_code_lands_on_its_own_group(format: BlockFormat) -> None:
    if not format.has_minimum:
        return
    assert format.scale_range is not None
    for minimum in range(format.scale_range[1] + 1):
        blocks = plain_blocks(format, format.groups)
        assert blocks.minimums is not None
        assert blocks.minimum_codes is not None
        blocks.minimums[:] = 0.5
        np.fill_diagonal(blocks.minimum_codes, minimum)
        expected = np.diag(np.full(format.groups, -0.5 * minimum, np.float32)).repeat(format.group, axis=1)
        np.testing.assert_array_equal(dequantize(pack(blocks, format), format.name, format.block), expected)


@every_format
def test_grid_gives_the_weights_of_all_codes(format: BlockFormat) -> None:
    blocks = random_blocks(format, 6 * format.block)
    steps, offsets = (array.repeat(format.group, axis=1) for array in grid(blocks, format))
    for code, level in enumerate(format.levels):
        chosen = replace(blocks, codes=np.full_like(blocks.codes, code))
        read = dequantize(pack(chosen, format), format.name, blocks.codes.shape[1])
        np.testing.assert_array_equal(steps * np.float32(level) - offsets, read)
    if not format.has_minimum:
        assert not offsets.any()


@every_format
def test_order_in_memory_does_not_matter(format: BlockFormat) -> None:
    blocks = random_blocks(format, 6 * format.block)
    arrays = {field.name: getattr(blocks, field.name) for field in fields(Blocks)}
    transposed = Blocks(**{name: None if array is None else array.T.copy().T for name, array in arrays.items()})
    assert transposed.codes.flags.f_contiguous
    np.testing.assert_array_equal(pack(transposed, format), pack(blocks, format))
    assert_same_bits(values(transposed, format), values(blocks, format))


@every_format
def test_table_agrees_with_gguf_and_with_itself(format: BlockFormat) -> None:
    assert format.block == block_size(format.name)[0]
    assert format.levels == tuple(sorted(format.levels)) or format.name == "MXFP4"
    assert len(format.levels) == 1 << sum(field.width for field in format.code_fields)


@every_format
def test_no_rows(format: BlockFormat) -> None:
    empty = np.empty((0, row_bytes(format.name, 512)), np.uint8)
    blocks = unpack(empty, format, 512)
    assert values(blocks, format).shape == (0, 512)
    assert pack(blocks, format).shape == empty.shape


def wrong_blocks() -> list[Any]:
    three, four, six, small = (FORMATS[name] for name in ("Q3_K", "Q4_K", "Q6_K", "MXFP4"))
    good = {format.name: random_blocks(format, 512) for format in (three, four, six, small)}
    codes = good["Q4_K"].codes.copy()
    codes[3, 5] = 16
    minimum_codes = np.full_like(good["Q4_K"].minimum_codes, 64)
    scale_codes = np.full_like(good["Q3_K"].scale_codes, -33)
    scales = np.asarray(good["MXFP4"].scales)
    return [
        pytest.param(four, replace(good["Q4_K"], codes=codes), "codes from 0 to 16", id="code"),
        pytest.param(three, replace(good["Q3_K"], scale_codes=scale_codes), "scale_codes from -33", id="scale"),
        pytest.param(four, replace(good["Q4_K"], minimum_codes=minimum_codes), "minimum_codes from 64", id="minimum"),
        pytest.param(four, replace(good["Q4_K"], minimum_codes=None), "minimum_codes are missing", id="missing"),
        pytest.param(four, replace(good["Q4_K"], codes=codes[:, :300]), "not whole blocks", id="columns"),
        pytest.param(four, replace(good["Q4_K"], scales=scales), r"scales are float32 \(24, 16\)", id="scales"),
        pytest.param(six, replace(good["Q6_K"], minimums=good["Q6_K"].scales), "has no minimums", id="surplus"),
        pytest.param(small, replace(good["MXFP4"], scales=scales * 3), "not a power of two", id="power"),
        pytest.param(small, replace(good["MXFP4"], scales=-scales), "not a power of two", id="negative"),
        pytest.param(small, replace(good["MXFP4"], scales=scales * 0), "not a power of two", id="zero"),
    ]


@pytest.mark.parametrize(("format", "blocks", "message"), wrong_blocks())
def test_what_would_not_come_back_is_refused(format: BlockFormat, blocks: Blocks, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(blocks, format)


def test_rows_of_another_length_are_refused() -> None:
    packed = pack(random_blocks(FORMATS["Q4_K"], 512), FORMATS["Q4_K"])
    for columns in (256, 500, 768):
        with pytest.raises(ValueError, match=f"not a row of {columns} weights in Q4_K"):
            unpack(packed, FORMATS["Q4_K"], columns)

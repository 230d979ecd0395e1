"""What a search finds, in device memory and turned as the weights are, and its way into packed rows.

Bits are put where the fields of the block formats say, by a few operations of torch: packing is little of the work.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quantkit.formats.gguf.blocks.fields import BitField
from quantkit.formats.gguf.blocks.table import BlockFormat
from quantkit.formats.gguf.types import block_size


@dataclass(frozen=True)
class Found:
    """Buffers that a search fills; None is what the format does not have."""

    codes: torch.Tensor  # uint8 [K, R], indices into the format's levels
    scales: torch.Tensor  # float16 [K / block, R], d
    minimums: torch.Tensor | None  # float16 [K / block, R], dmin, subtracted
    scale_codes: torch.Tensor | None  # [K / group, R], int8 where the format's range has negative ones, else uint8
    minimum_codes: torch.Tensor | None  # uint8 [K / group, R]


def buffers(format: BlockFormat, columns: int, rows: int, device: torch.device) -> Found:
    """Room for what is found in `rows` of `columns` weights."""

    def room(each: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        return torch.empty(columns // each, rows, dtype=dtype, device=device)

    return Found(
        room(1),
        room(format.block, torch.float16),
        room(format.block, torch.float16) if format.has_minimum else None,
        room(format.group, _scale_code_type(format)) if format.scale_range else None,
        room(format.group) if format.has_minimum_codes else None,
    )


def finite(found: Found) -> torch.Tensor:
    """Whether every block scale is a finite float16, bool [] in device memory."""
    scales = found.scales if found.minimums is None else torch.stack([found.scales, found.minimums])
    return torch.isfinite(scales).all()


def packed(found: Found, format: BlockFormat) -> torch.Tensor:
    """The rows as ggml stores them, uint8 [R, bytes per row], in device memory."""
    blocks, rows = found.scales.shape
    stored = torch.zeros(blocks, block_size(format.name)[1], rows, dtype=torch.uint8, device=found.codes.device)
    _put(found.codes + format.code_bias, format.code_fields, stored)
    if found.scale_codes is not None:
        # Wraps around, as biases are meant to.
        _put(found.scale_codes.view(torch.uint8) + format.scale_bias, format.scale_fields, stored)
    if found.minimum_codes is not None:
        _put(found.minimum_codes, format.minimum_fields, stored)
    _put_float16(found.scales, format.scale_byte, stored)
    if found.minimums is not None and format.minimum_byte is not None:
        _put_float16(found.minimums, format.minimum_byte, stored)
    return stored.permute(2, 0, 1).reshape(rows, -1).contiguous()


def _put(integers: torch.Tensor, fields: tuple[BitField, ...], stored: torch.Tensor) -> None:
    """Write `integers` [blocks * n, R] into the bytes of their blocks `stored` [blocks, bytes, R]; see `fields.put`."""
    blocks, _, rows = stored.shape
    by_block = integers.view(blocks, -1, rows)
    for field in fields:
        part = (by_block[:, slice(*field.integers)] >> field.shift) & ((1 << field.width) - 1)
        part = part.reshape(blocks, -1, field.per_byte, field.run, rows)
        merged = part[:, :, 0] << field.low
        for place in range(1, field.per_byte):
            merged |= part[:, :, place] << (field.low + place * field.width)
        stored[:, slice(*field.bytes)] |= merged.reshape(blocks, -1, rows)


def _scale_code_type(format: BlockFormat) -> torch.dtype:
    return torch.int8 if format.scale_range is not None and format.scale_range[0] < 0 else torch.uint8


def _put_float16(numbers: torch.Tensor, byte: int, stored: torch.Tensor) -> None:
    stored[:, byte : byte + 2] = numbers[:, :, None].view(torch.uint8).transpose(1, 2)

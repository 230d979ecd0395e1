"""ggml's tensor types: how many bytes a row takes."""

from __future__ import annotations

import math

import gguf

from quantkit.errors import BadInput


def ggml_type(name: str) -> gguf.GGMLQuantizationType:
    """Return the gguf enum member for a type name such as "Q4_K" (exact case)."""
    return gguf.GGMLQuantizationType[name]


def block_size(name: str) -> tuple[int, int]:
    """Weights per block of type `name`, and bytes per block."""
    weights, nbytes = gguf.GGML_QUANT_SIZES[ggml_type(name)]
    return int(weights), int(nbytes)


def row_bytes(name: str, row_length: int) -> int:
    """Bytes of one row of `row_length` weights in type `name`; the block size must divide it."""
    block, size = block_size(name)
    return row_length // block * size


def tensor_bytes(name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a whole tensor of `shape` (last axis is the row) in type `name`, without padding."""
    return math.prod(shape[:-1]) * row_bytes(name, shape[-1])


def check_row_length(tensor: str, name: str, row_length: int) -> None:
    """Raise BadInput when type `name` cannot hold rows of `row_length` weights."""
    block, _ = block_size(name)
    if row_length % block:
        raise BadInput(
            f"tensor {tensor}: rows of {row_length} weights are not divisible by the block size {block} of {name}; "
            f"choose another type for it with --tensor-type '{tensor.replace('.', '[.]')}=Q8_0' or F16"
        )

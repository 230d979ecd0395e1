"""What the INT4 and INT8 formats have in common: the group sizes runtimes have kernels for, and exact scales."""

from __future__ import annotations

import numpy as np

from quantkit.arrays import Bfloat16Bits, Float32
from quantkit.errors import BadInput
from quantkit.quantize.integers import WHOLE_ROW, IntegerGrid, Quantized

GROUP_SIZES = (32, 64, 128, WHOLE_ROW)


def check_grid(format_name: str, grid: IntegerGrid, bits: tuple[int, ...]) -> None:
    """Raise BadInput when the format has no such number of bits, or runtimes have no kernel for the group size."""
    if grid.bits not in bits:
        raise BadInput(f"--bits {grid.bits}: {format_name} is loaded with {_or(bits)} bits only; give one of these")
    if grid.group_size not in GROUP_SIZES:
        raise BadInput(
            f"--group-size {grid.group_size}: runtimes have kernels for {_or(GROUP_SIZES)} "
            f"({WHOLE_ROW}: whole rows); give one of these"
        )


def check_groups(name: str, columns: int, grid: IntegerGrid) -> None:
    """Raise BadInput naming the tensor when its columns are not whole groups."""
    if columns % grid.columns(columns):
        fitting = tuple(size for size in GROUP_SIZES if size == WHOLE_ROW or columns % size == 0)
        raise BadInput(
            f"tensor {name}: its {columns} columns are not a multiple of the group size {grid.group_size}; "
            f"give --group-size {_or(fitting)}"
        )


def check_words(name: str, axis: str, size: int, per_word: int, remedy: str) -> None:
    """Raise BadInput naming the tensor when `size` rows or columns (`axis`) do not fill whole words."""
    if size % per_word:
        raise BadInput(
            f"tensor {name}: its {size} {axis} are not a multiple of {per_word}, which share a word; {remedy}"
        )


def check_quantized(quantized: Quantized, grid: IntegerGrid) -> None:
    """Raise ValueError when packing would change a value: the quantizer broke the promises of Quantized and grid."""
    rows, columns = quantized.codes.shape
    groups = (rows, grid.groups(columns))
    if quantized.scales.shape != groups or quantized.zeros.shape != groups:
        raise ValueError(f"scales {quantized.scales.shape} and zeros {quantized.zeros.shape} where {groups} are needed")
    if max(quantized.codes.max(initial=0), quantized.zeros.max(initial=0)) >= grid.levels:
        raise ValueError(f"a code or zero does not fit into {grid.bits} bits")
    if grid.symmetric and (quantized.zeros != grid.middle).any():
        raise ValueError(f"a zero of a symmetric grid is not {grid.middle}")
    scales = quantized.scales
    with np.errstate(over="ignore"):
        exact = (scales > 0) & (scales.astype(np.float16) == scales) & ((scales.view(np.uint32) & 0xFFFF) == 0)
    if not exact.all():
        raise ValueError("a scale is not positive, or not exact in both bfloat16 and float16")


def bfloat16_bits(scales: Float32) -> Bfloat16Bits:
    """The bits of scales that bfloat16 holds exactly."""
    return (scales.view(np.uint32) >> 16).astype(np.uint16)


def from_bfloat16_bits(bits: Bfloat16Bits) -> Float32:
    """The scales of these bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _or(values: tuple[int, ...]) -> str:
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}" if others else last

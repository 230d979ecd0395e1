"""Rows of a matrix as they come from a checkpoint: float32, or FP8 with the scales of its blocks."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.arrays import Bytes, Float32
from quantkit.checkpoint.dequant import dequantize_fp8_blocks


class NotRepresentable(ValueError):
    """A weight is too large for the type: the result would hold an infinity."""


@dataclass(frozen=True)
class Rows:
    """Rows of a matrix [N, K]: `values` float32 [R, K], or e4m3 `codes` [R, K] with the `scale` of the whole matrix.

    `scale` is float32 [ceil(N / block[0]), ceil(K / block[1])], and `first_row` is the row of the matrix at which
    `codes` begin.
    """

    values: Float32 | None = None
    codes: Bytes | None = None
    scale: Float32 | None = None
    block: tuple[int, int] = (128, 128)
    first_row: int = 0

    def __post_init__(self) -> None:
        if (self.values is None) == (self.codes is None) or (self.codes is None) != (self.scale is None):
            raise ValueError("rows are either float32 values, or codes with a scale")
        if not self._stored.flags.c_contiguous:  # for any other layout loops would be compiled anew
            raise ValueError("rows must follow each other in memory, without gaps")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self._stored.shape
        return rows, columns

    @property
    def _stored(self) -> Float32 | Bytes:
        stored = self.codes if self.values is None else self.values
        assert stored is not None
        return stored

    def float32(self) -> Float32:
        """The rows as float32 [R, K]; those of FP8 are a copy. NaN codes and scales give NaN."""
        if self.values is not None:
            return self.values
        assert self.codes is not None
        assert self.scale is not None
        return dequantize_fp8_blocks(self.codes, self.scale, self.block, self.first_row)

"""What integer quantization has in common, whatever chose the integers and whatever file they go into."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantkit.arrays import Bytes, Float32

WHOLE_ROW = -1
# Of GPTQ: added to the Hessian's diagonal, relative to its mean; the next one when factorization fails.
DAMPING = (0.01, 0.1, 1.0)


@dataclass(frozen=True)
class IntegerGrid:
    """The values a weight may have: `(code - zero) * scale`, code from 0 to 2^bits - 1.

    Scale and zero belong to `group_size` neighbouring columns of one row, with WHOLE_ROW to all of a row. A symmetric
    grid has the zero 2^(bits - 1) everywhere.
    """

    bits: int
    group_size: int
    symmetric: bool

    @property
    def levels(self) -> int:
        """How many codes there are."""
        return 1 << self.bits

    @property
    def middle(self) -> int:
        """The zero of a symmetric grid."""
        return 1 << (self.bits - 1)

    def columns(self, width: int) -> int:
        """Columns of a group in a matrix with rows of `width`."""
        return width if self.group_size == WHOLE_ROW else self.group_size

    def groups(self, width: int) -> int:
        """Groups of a row of `width`, which must be a multiple of the group size."""
        return width // self.columns(width)


@dataclass(frozen=True)
class Quantized:
    """One matrix [N, K] on a grid with groups of g columns: the weights are `(codes - zeros) * scales`.

    Scales are positive and exact in bfloat16 and in float16, so that a runtime may load them as either.
    """

    codes: Bytes  # [N, K]
    scales: Float32  # [N, K / g]
    zeros: Bytes  # [N, K / g]

    def dequantized(self) -> Float32:
        """The weights, float32 [N, K]."""
        rows, width = self.codes.shape
        groups = self.scales.shape[1]
        codes = self.codes.reshape(rows, groups, width // groups).astype(np.float32)
        values: npt.NDArray[np.float32] = (codes - self.zeros[..., None]) * self.scales[..., None]
        return values.reshape(rows, width)

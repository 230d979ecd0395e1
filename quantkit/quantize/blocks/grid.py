"""A matrix on its way into ggml's blocks: grids searched on updated weights, rounded with feedback, then revised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from quantkit.arrays import Bytes, Float32
from quantkit.formats.gguf.blocks.packing import Blocks
from quantkit.formats.gguf.blocks.table import SUPER, BlockFormat
from quantkit.quantize.blocks.kernels import search_steps, search_steps_and_offsets
from quantkit.quantize.blocks.levels import levels_of
from quantkit.quantize.blocks.revision import revise
from quantkit.quantize.blocks.rounding import Rounded
from quantkit.quantize.blocks.scales import CodedScales, FreeScales
from quantkit.quantize.feedback import Columns


@dataclass(frozen=True)
class Effort:
    """How much is tried: `sweeps` of revision, and then all over again from other block scales.

    These are, one after the other, `factors` of the best d and dmin so far.
    """

    factors: tuple[tuple[float, float], ...]
    sweeps: int


# What an expert gets, and what the few matrices get that every token passes through.
QUICK = Effort((), 1)
THOROUGH = Effort(
    (
        *((factor, factor) for factor in (0.86, 0.93, 1.07, 1.15)),
        *((1, 0.93), (1, 1.07), (0.93, 1), (1.07, 1), (0.96, 1.03), (1.03, 0.96)),
        *((factor, factor) for factor in (0.97, 1.03)),
    ),
    4,
)


class BlockGrid:
    """The grid of one matrix [N, K] in a block format. Columns of a block, and of a group in it, must come together."""

    span = SUPER

    def __init__(self, format: BlockFormat, rows: int, width: int, effort: Effort = QUICK) -> None:
        self._effort = effort
        self._format = format
        self._levels = levels_of(format)
        groups, blocks = width // format.group, width // format.block
        self._codes: Bytes = np.empty((width, rows), np.uint8)
        self._d: Float32 = np.empty((blocks, rows), np.float32)
        self._dmin: Float32 = np.empty((blocks, rows), np.float32)
        self._scale_codes = np.empty((groups, rows), np.int16)
        self._minimum_codes = np.empty((groups, rows), np.int16)

    def round(self, columns: Columns, errors: torch.Tensor) -> None:
        """See `Grid`: search the scales of a block, round group after group, then revise what was chosen."""
        best = self._rounded(columns, self._search(columns), errors)
        for factor, minimum_factor in self._effort.factors:
            if factor != minimum_factor and not self._format.has_minimum:
                continue
            best.take(self._rounded(columns, best.scales.scaled(factor, minimum_factor), errors))
        torch.sub(columns.originals, best.values, out=errors)
        self._store(columns, best)

    def _rounded(self, columns: Columns, scales: CodedScales | FreeScales, errors: torch.Tensor) -> Rounded:
        """Round a block from `scales` on; `errors` [C, N] are for use on the way."""
        rounded = Rounded(scales, self._levels, self._format.group, errors.shape)
        for number, part in enumerate(rounded.groups):
            targets = columns.targets[part]
            if number:
                before = slice(0, part.start)
                targets = torch.addmm(targets, columns.factors[part, before], errors[before])
            factors = columns.factors[part, part].contiguous()
            rounded.round(number, targets, columns.originals[part], factors, columns.cost[part], errors[part])
        revise(columns, rounded, self._effort.sweeps)
        return rounded

    def blocks(self) -> Blocks:
        """The rounded matrix."""
        format = self._format
        scale_codes: npt.NDArray[np.int8] | Bytes | None = None
        if format.scale_range is not None:
            signed = format.scale_range[0] < 0
            scale_codes = self._scale_codes.T.astype(np.int8) if signed else self._scale_codes.T.astype(np.uint8)
        return Blocks(
            np.ascontiguousarray(self._codes.T),
            self._d.T if format.scale_is_exponent else self._d.T.astype(np.float16),
            self._dmin.T.astype(np.float16) if format.has_minimum else None,
            scale_codes,
            self._minimum_codes.T.astype(np.uint8) if format.has_minimum_codes else None,
        )

    def _search(self, columns: Columns) -> CodedScales | FreeScales:
        """Scales with the least error of the targets, as if there were no feedback within the block."""
        format, table = self._format, self._levels
        targets, cost = columns.targets.numpy(), columns.cost.numpy()
        shape = (len(cost) // format.group, targets.shape[1])
        steps, offsets, stiffness = (np.zeros(shape, np.float32) for _ in range(3))
        if format.has_minimum:
            search_steps_and_offsets(
                targets, cost, format.group, table.ratios, table.highest, steps, offsets, stiffness
            )
        else:
            search_steps(
                targets, cost, format.group, table.ratios, table.lowest, table.highest, table.nearest, steps, stiffness
            )
        if format.scale_range is None:
            return FreeScales(format, steps, offsets)
        weight = np.repeat(cost.reshape(-1, format.group).sum(1)[:, None], shape[1], 1)
        return CodedScales(format, steps, offsets, stiffness, weight)

    def _store(self, columns: Columns, rounded: Rounded) -> None:
        """Put what was chosen where it belongs in the matrix."""
        places = columns.places.numpy()
        self._codes[places] = self._levels.codes(rounded.places)
        groups = places[:: self._format.group] // self._format.group
        scales = rounded.scales
        if isinstance(scales, CodedScales):
            block = places[0] // self._format.block
            self._d[block], self._dmin[block] = scales.d, scales.dmin
            self._scale_codes[groups], self._minimum_codes[groups] = scales.codes, scales.minimum_codes
        else:
            self._d[groups], self._dmin[groups] = scales.steps, scales.offsets

"""The scales of one block of columns: what may be stored, what else may be tried, and which fit best.

All arrays have groups or nothing first and rows of the matrix last: [G, N] and [N].
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.arrays import Float32
from quantkit.formats.gguf.blocks.table import BlockFormat

Codes = npt.NDArray[np.int16]
# How far from a code others are tried: at first, and once all of a block is rounded.
AT_FIRST, LATER = 2, 1
# Where a step is no multiple of anything, it is tried in parts of what the levels resolve.
RESOLUTION = 0.5
HALF_MAX = np.float32(65504)


def moves(reach: int) -> Codes:
    """0, 1, -1, 2, -2 and so on up to `reach`."""
    return np.array([0, *(sign * by for by in range(1, reach + 1) for sign in (1, -1))], np.int16)


@dataclass(frozen=True)
class Trials:
    """What a group may take: `steps` [S, N] and `offsets` [M, N], float32, and the codes that these come from."""

    steps: Float32
    offsets: Float32
    codes: Codes | None = None
    minimum_codes: Codes | None = None


def half(values: Float32) -> Float32:
    """Round to float16, held at its largest number."""
    rounded: Float32 = np.clip(values, -HALF_MAX, HALF_MAX).astype(np.float16).astype(np.float32)
    return rounded


def picked(trials: npt.NDArray[Any], chosen: Codes) -> npt.NDArray[Any]:
    """For every row of the matrix the one of its `trials` [S, N] that has the number `chosen` [N]."""
    return trials[chosen, np.arange(len(chosen))]


class CodedScales:
    """Steps d * code and offsets dmin * code of the groups of a block, with d and dmin [N] and codes [G, N]."""

    def __init__(
        self, format: BlockFormat, steps: Float32, offsets: Float32, stiffness: Float32, weight: Float32
    ) -> None:
        """Fit d and dmin to `steps` and `offsets` [G, N], an error in which costs `stiffness` and `weight`, [G, N]."""
        assert format.scale_range is not None
        self._lowest, self._highest = format.scale_range
        self.d, self.codes = fit_factor(steps, stiffness, *format.scale_range)
        self.dmin, self.minimum_codes = fit_factor(offsets, weight, 0, format.scale_range[1])
        self._has_minimum = format.has_minimum

    def trials(self, group: int, reach: int) -> Trials:
        """The present scales of a group, then those up to `reach` away."""
        by = moves(reach)[:, None]
        codes = self._moved(self.codes[group], by, self._lowest)
        minimum_codes = self._moved(self.minimum_codes[group], by if self._has_minimum else by[:1], 0)
        return Trials(self.d * codes, self.dmin * minimum_codes, codes, minimum_codes)

    def choose(self, group: int, trials: Trials, chosen: Codes) -> None:
        """Take those of the group's `trials` that have the numbers `chosen` [2, N]."""
        assert trials.codes is not None
        assert trials.minimum_codes is not None
        self.codes[group] = picked(trials.codes, chosen[0])
        self.minimum_codes[group] = picked(trials.minimum_codes, chosen[1])

    def scaled(self, factor: float, minimum_factor: float) -> CodedScales:
        """Nearly the same steps and offsets from another d and dmin."""
        other = copy.copy(self)
        other.d, other.codes = self._rescaled(self.d, self.codes, factor, self._lowest)
        other.dmin, other.minimum_codes = self._rescaled(self.dmin, self.minimum_codes, minimum_factor, 0)
        return other

    def _rescaled(self, factors: Float32, codes: Codes, by: float, lowest: int) -> tuple[Float32, Codes]:
        return half(factors * np.float32(by)), np.clip(np.rint(codes / by), lowest, self._highest).astype(np.int16)

    def take(self, other: CodedScales | FreeScales, rows: npt.NDArray[np.bool_]) -> None:
        """Become like `other`, of the same format, in some rows: a mask [N]."""
        assert isinstance(other, CodedScales)
        np.copyto(self.d, other.d, where=rows)
        np.copyto(self.dmin, other.dmin, where=rows)
        np.copyto(self.codes, other.codes, where=rows)
        np.copyto(self.minimum_codes, other.minimum_codes, where=rows)

    def _moved(self, codes: Codes, by: Codes, lowest: int) -> Codes:
        moved: Codes = np.clip(codes + by, lowest, self._highest)
        return moved


class FreeScales:
    """Steps and offsets [G, N] that are float16 numbers, or powers of two; used like CodedScales."""

    def __init__(self, format: BlockFormat, steps: Float32, offsets: Float32) -> None:
        self._exponent = format.scale_is_exponent
        self._has_minimum = format.has_minimum
        self._fraction = np.float32(RESOLUTION / len(format.levels))
        self.steps = self._stored(steps)
        self.offsets = half(offsets)

    def trials(self, group: int, reach: int) -> Trials:
        """See CodedScales; here the distances are parts of a step."""
        step, offset = self.steps[group], self.offsets[group]
        by = moves(reach).astype(np.float32)[:, None]
        steps = self._stored(step * (np.exp2(by) if self._exponent else 1 + self._fraction * by))
        if not self._has_minimum:
            return Trials(steps, offset[None])
        return Trials(steps, half(offset + np.abs(step) * np.float32(RESOLUTION / 2) * by))

    def choose(self, group: int, trials: Trials, chosen: Codes) -> None:
        """See CodedScales."""
        self.steps[group] = picked(trials.steps, chosen[0])
        self.offsets[group] = picked(trials.offsets, chosen[1])

    def scaled(self, factor: float, minimum_factor: float) -> FreeScales:
        """See CodedScales."""
        other = copy.copy(self)
        other.steps = self._stored(self.steps * np.float32(factor))
        other.offsets = half(self.offsets * np.float32(minimum_factor))
        return other

    def take(self, other: CodedScales | FreeScales, rows: npt.NDArray[np.bool_]) -> None:
        """See CodedScales."""
        assert isinstance(other, FreeScales)
        np.copyto(self.steps, other.steps, where=rows)
        np.copyto(self.offsets, other.offsets, where=rows)

    def _stored(self, steps: Float32) -> Float32:
        if not self._exponent:
            return half(steps)
        # The power of two nearest in ratio; the smallest one stands for nothing.
        exponents = np.rint(np.log2(np.maximum(np.abs(steps), np.float32(2.0**-126))))
        return np.ldexp(np.float32(1), np.clip(exponents, -126, 126).astype(np.int32))


def fit_factor(values: Float32, cost: Float32, lowest: int, highest: int) -> tuple[Float32, Codes]:
    """Return the float16 factor [N] and the codes [G, N], `lowest` to `highest`, that come closest to `values` [G, N].

    Closest in the sum over groups of `cost` [G, N] times the squared difference. The value that is largest in size gets
    the code `highest` or `lowest`, and the factor is fitted once to the codes that follow from this.
    """
    rows = np.arange(values.shape[1])
    largest = values[np.abs(values).argmax(0), rows]
    best = np.full(values.shape[1], np.inf, np.float32)
    factor, codes = np.zeros(values.shape[1], np.float32), np.zeros(values.shape, np.int16)
    for extreme in (highest, lowest) if lowest else (highest,):
        tried = half(largest / np.float32(extreme))
        for _ in range(2):
            integers = _codes_for(values, tried, lowest, highest)
            error = (cost * np.square(values - tried * integers)).sum(0)
            better = error < best
            best[better], factor[better] = error[better], tried[better]
            codes[:, better] = integers[:, better]
            weighted = cost * integers
            square = (weighted * integers).sum(0)
            tried = half(np.divide((weighted * values).sum(0), square, out=tried.copy(), where=square > 0))
    return factor, codes


def _codes_for(values: Float32, factor: Float32, lowest: int, highest: int) -> Codes:
    inverse = np.divide(1, factor, out=np.zeros_like(factor), where=factor != 0)
    return np.clip(np.rint(values * inverse), lowest, highest).astype(np.int32)

"""What the codes of a block format stand for, as the compiled loops want it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from quantkit.arrays import Bytes, Float32
from quantkit.formats.gguf.blocks.table import DOUBLED_E2M1, NON_LINEAR, BlockFormat

# Tries of a step before it is fitted, as multiples of the one with which the levels reach the largest weight: with few
# levels it pays to clip, with many next to nothing is won by either.
FEW_LEVELS = 8
# With an offset, and without one, where both signs are tried.
TRIES, TRIES_OF_SIGN = 6, 4
CLIPPED = {True: (0.6, 1.1), False: (0.85, 1.05)}

# Levels that leave integers out.
CODEBOOKS = (NON_LINEAR, DOUBLED_E2M1)


def _of_half_steps(codebook: tuple[float, ...]) -> Float32:
    """The level nearest to what lies between a half step and the next, from the lowest level up to the highest.

    The middle between two integers lies on a half step, so there is one for all of it.
    """
    levels = np.array(codebook, np.float32)
    lowest, highest = levels.min(), levels.max()
    inside = lowest + np.arange(2 * int(highest - lowest) + 1, dtype=np.float32) / 2 + np.float32(0.25)
    nearest: Float32 = levels[np.abs(inside[:, None] - levels).argmin(1)]
    return nearest


# One after the other. The compiled loops have it as a constant: only then are several looked up at once, and only a
# change of the loops' own file makes them compile again.
NEAREST = np.concatenate([_of_half_steps(codebook) for codebook in CODEBOOKS])


@dataclass(frozen=True)
class Levels:
    """The levels of a format, all of them integers.

    `nearest` is where in NEAREST their half steps begin; None where all integers are levels.
    `code_of` is the code of every integer from `lowest` up that is a level.
    """

    lowest: np.float32
    highest: np.float32
    nearest: int | None
    code_of: Bytes
    ratios: Float32

    def codes(self, places: Bytes) -> Bytes:
        """The codes of the levels that are `places` above the lowest, of any shape."""
        return places if self.nearest is None else np.take(self.code_of, places)


@cache
def levels_of(format: BlockFormat) -> Levels:
    """The tables of `format`."""
    levels = np.array(format.levels, np.float32)
    lowest, highest = levels.min(), levels.max()
    code_of = np.zeros(int(highest - lowest) + 1, np.uint8)
    # Of two codes for 0 the first counts, so they are written last to first.
    code_of[(levels - lowest).astype(int)[::-1]] = np.arange(len(levels), dtype=np.uint8)[::-1]
    nearest = None
    if format.levels in CODEBOOKS:
        before = CODEBOOKS[: CODEBOOKS.index(format.levels)]
        nearest = sum(len(_of_half_steps(codebook)) for codebook in before)
    return Levels(lowest, highest, nearest, code_of, _ratios(format, float(lowest), float(highest)))


def _ratios(format: BlockFormat, lowest: float, highest: float) -> Float32:
    """Levels that the largest weight, or with offsets the span of the weights, may be brought to, tried in turn."""
    if format.has_minimum:
        # With few levels the best ones often leave the outermost weights outside.
        tries = np.linspace(1.5, 4.5, TRIES) if highest < FEW_LEVELS else highest * np.linspace(0.94, 1.075, TRIES)
        return tries.astype(np.float32)
    tries = np.linspace(*CLIPPED[len(format.levels) <= FEW_LEVELS], TRIES_OF_SIGN)
    return np.concatenate([lowest * tries, -lowest * tries]).astype(np.float32)

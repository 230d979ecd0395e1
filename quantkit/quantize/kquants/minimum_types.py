"""Q2_K, Q4_K and Q5_K: how long each is searched, and what for.

An error is weighed by the column's importance times sqrt(spread + x^2 / the block's mean x^2), which is what ggml does
where it knows an importance (source: ggml-quants.c). Other spreads, and importance alone, made models of the fixture
that diverge as much or more, within what chance allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from quantkit.arrays import Float32
from quantkit.formats.gguf.blocks.table import FORMATS, BlockFormat
from quantkit.quantize.kquants.found import Found
from quantkit.quantize.kquants.minimum_kernels import search


@dataclass(frozen=True)
class Effort:
    """What is tried; `minimum_kernels.search` says what each is for."""

    spread: np.float32
    ratios: Float32
    fits: int
    reaches: npt.NDArray[np.int64]


def _effort(spread: float, first: float, last: float, fits: int) -> Effort:
    """Ten spans from `first` to `last` levels: with fewer the search ends in poor minima, more gain next to nothing.

    The codes of scales are revised far around at first: where they are small, as beside a group with an outlier, their
    neighbours are far apart.
    """
    return Effort(np.float32(spread), np.linspace(first, last, 10, dtype=np.float32), fits, np.array([4, 1, 1]))


# The fewer levels, the more it pays to leave the outermost weights outside, or to let the levels reach beyond.
EFFORTS = {
    "Q2_K": _effort(1, 1.7, 4.2, fits=1),
    "Q4_K": _effort(2, 12.75, 15.9, fits=3),
    "Q5_K": _effort(2, 28.2, 31.9, fits=3),
}
# Codes for the largest step, and for the largest offset, as parts of the largest code.
FACTOR_RATIOS = np.linspace(0.9, 1.1, 21, dtype=np.float32)


def _search(format: BlockFormat, strip: Float32, importance: Float32 | None, found: Found) -> None:
    assert format.scale_range is not None
    effort = EFFORTS[format.name]
    search(
        strip, np.ones(len(strip), np.float32) if importance is None else importance, format.group,
        np.float32(format.levels[-1]), np.float32(format.scale_range[1]),
        effort.spread, effort.ratios, effort.fits, FACTOR_RATIOS, effort.reaches,
        found.codes, found.scales, found.minimums, found.scale_codes, found.minimum_codes,
    )  # fmt: skip


SEARCHES = {name: partial(_search, FORMATS[name]) for name in EFFORTS}

"""The types without an offset: how much is tried for each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from quantkit.arrays import Float32
from quantkit.formats.gguf.blocks.table import FORMATS
from quantkit.quantize.blocks.levels import levels_of
from quantkit.quantize.kquants.found import Found
from quantkit.quantize.kquants.signed_kernels import round_blocks, search, search_blocks


@dataclass(frozen=True)
class Tries:
    """What is tried: levels of the largest weight, scale codes of the largest step, how many codes around another."""

    ratios: Float32
    divisors: Float32
    reach: int


def _levels(outermost: float, first: float, last: float, count: int, opposite: int = 0) -> Float32:
    """`count` multiples of the level `outermost`, from `first` to `last` times it, then `opposite` of its negative.

    Beyond 1 the largest weight is clipped.
    """
    same, other = (np.linspace(first, last, many) * outermost for many in (count, opposite))
    return np.concatenate([same, -other]).astype(np.float32)


SIX_BITS, EIGHT_BITS = (np.array(codes, np.float32) for codes in ((-32, -30, -28, 31, 29), (-128, -120, -112, -104)))

# With importance the range is wider: where some columns matter much, it is worth clipping or coarsening the others.
WITH_CODES = {
    "Q3_K": Tries(_levels(-4, 0.7, 1.9, 10, 6), SIX_BITS, 1),
    "Q6_K": Tries(_levels(-32, 0.6, 1.05, 14), EIGHT_BITS, 1),
    "IQ4_XS": Tries(_levels(-127, 0.7, 1.4, 16, 16), SIX_BITS, 2),
}
WITH_CODES_UNWEIGHTED = {
    "Q3_K": Tries(_levels(-4, 0.8, 1.1, 3), SIX_BITS[:3], 1),
    "Q6_K": Tries(_levels(-32, 0.9, 1.02, 8), EIGHT_BITS, 1),
    "IQ4_XS": Tries(_levels(-127, 0.75, 1.1, 16, 16), SIX_BITS, 2),
}
WITHOUT_CODES = {
    "IQ4_NL": _levels(-127, 0.7, 1.4, 16, 16),
    "Q4_0": _levels(-8, 0.7, 1.5, 12, 8),
    "Q5_0": _levels(-16, 0.7, 1.2, 12, 8),
}
WITHOUT_CODES_UNWEIGHTED = {
    "IQ4_NL": _levels(-127, 0.75, 1.1, 16, 16),
    "Q4_0": _levels(-8, 0.8, 1.1, 6, 3),
    "Q5_0": _levels(-16, 0.85, 1.05, 6, 3),
}
# ggml weighs by the importance alone.
BY_IMPORTANCE_ALONE = frozenset({"Q6_K"})


def _search(type_name: str, strip: Float32, importance: Float32 | None, found: Found) -> None:
    format = FORMATS[type_name]
    levels = levels_of(format)
    tries = (WITH_CODES_UNWEIGHTED if importance is None else WITH_CODES)[type_name]
    assert format.scale_range is not None
    lowest, highest = (np.float32(code) for code in format.scale_range)
    search(
        strip, importance, type_name not in BY_IMPORTANCE_ALONE, format.group,
        levels.lowest, levels.highest, levels.nearest, levels.code_of,
        lowest, highest, tries.ratios, tries.divisors, tries.reach,
        found.codes, found.scales, found.scale_codes,
    )  # fmt: skip


def _search_blocks(type_name: str, strip: Float32, importance: Float32 | None, found: Found) -> None:
    levels = levels_of(FORMATS[type_name])
    ratios = (WITHOUT_CODES_UNWEIGHTED if importance is None else WITHOUT_CODES)[type_name]
    search_blocks(
        strip, importance, levels.lowest, levels.highest, levels.nearest, levels.code_of, ratios,
        found.codes, found.scales,
    )  # fmt: skip


def _round_blocks(type_name: str, strip: Float32, importance: Float32 | None, found: Found) -> None:
    levels = levels_of(FORMATS[type_name])
    round_blocks(strip, levels.lowest, levels.highest, found.codes, found.scales)


SEARCHES = {
    **{name: partial(_search, name) for name in WITH_CODES},
    **{name: partial(_search_blocks, name) for name in WITHOUT_CODES},
    "Q8_0": partial(_round_blocks, "Q8_0"),
}

"""The types without an offset: what the CPU tries is tried here."""

from __future__ import annotations

from functools import partial

import torch

from quantkit.formats.gguf.blocks.table import FORMATS, SMALL, SUPER
from quantkit.quantize.kquants.cuda import signed_kernels as kernels
from quantkit.quantize.kquants.cuda import step_search
from quantkit.quantize.kquants.cuda.found import Found
from quantkit.quantize.kquants.cuda.launch import launch
from quantkit.quantize.kquants.cuda.tables import device_levels, device_numbers
from quantkit.quantize.kquants.cuda.weights import NOTHING, ROOT, SQUARE, weights
from quantkit.quantize.kquants.signed_kernels import TINY
from quantkit.quantize.kquants.signed_types import (
    BY_IMPORTANCE_ALONE,
    WITH_CODES,
    WITH_CODES_UNWEIGHTED,
    WITHOUT_CODES,
    WITHOUT_CODES_UNWEIGHTED,
)


def _search(type_name: str, x: torch.Tensor, importance: torch.Tensor | None, found: Found) -> None:
    format, rows = FORMATS[type_name], x.shape[1]
    tries = (WITH_CODES_UNWEIGHTED if importance is None else WITH_CODES)[type_name]
    assert format.scale_range is not None
    levels, (scale_lowest, scale_highest) = device_levels(format, x.device), map(float, format.scale_range)
    blocks, groups = x.numel() // SUPER, x.numel() // format.group
    ratios = device_numbers(tuple(tries.ratios.tolist()), x.device)
    divisors = device_numbers(tuple(tries.divisors.tolist()), x.device)
    w = _weights(x, importance, SUPER, by_size=type_name not in BY_IMPORTANCE_ALONE)
    steps, stiffness, codes, mixed = x.new_empty(4, groups)
    d = x.new_empty(blocks)
    launch(
        step_search.search_steps, groups, x, w, ratios, levels.table, steps, stiffness, groups, rows,
        levels.lowest, levels.highest, TRIES=len(ratios), GROUP=format.group, CODEBOOK=levels.codebook, HALF=False,
    )  # fmt: skip
    launch(
        kernels.search_d, blocks, steps, stiffness, divisors, d, blocks, rows, scale_lowest,
        scale_highest, TRIES=len(divisors), GROUPS=format.groups,
    )  # fmt: skip
    launch(
        kernels.refine_codes, groups, x, w, levels.table, d, steps, codes, mixed, stiffness, groups, rows,
        levels.lowest, levels.highest, scale_lowest, scale_highest, REACH=tries.reach, GROUP=format.group,
        GROUPS=format.groups, CODEBOOK=levels.codebook,
    )  # fmt: skip
    launch(
        kernels.refit_d, blocks, codes, mixed, stiffness, d, steps, found.scale_codes, blocks, rows,
        GROUPS=format.groups,
    )  # fmt: skip
    found.scales.copy_(d.view_as(found.scales))
    _store(type_name, x, steps, found)


def _search_blocks(type_name: str, x: torch.Tensor, importance: torch.Tensor | None, found: Found) -> None:
    rows, blocks = x.shape[1], x.numel() // SMALL
    levels = device_levels(FORMATS[type_name], x.device)
    tried = (WITHOUT_CODES_UNWEIGHTED if importance is None else WITHOUT_CODES)[type_name]
    ratios = device_numbers(tuple(tried.tolist()), x.device)
    w = _weights(x, importance, SMALL)
    steps, stiffness = x.new_empty(2, blocks)
    launch(
        step_search.search_steps, blocks, x, w, ratios, levels.table, steps, stiffness, blocks, rows,
        levels.lowest, levels.highest, TRIES=len(ratios), GROUP=SMALL, CODEBOOK=levels.codebook, HALF=True,
    )  # fmt: skip
    found.scales.copy_(steps.view_as(found.scales))
    _store(type_name, x, steps, found)


def _round_blocks(type_name: str, x: torch.Tensor, importance: torch.Tensor | None, found: Found) -> None:
    levels = device_levels(FORMATS[type_name], x.device)
    launch(
        step_search.round_blocks, x.numel() // SMALL, x, found.scales, found.codes, x.numel() // SMALL, x.shape[1],
        levels.lowest, levels.highest, GROUP=SMALL,
    )  # fmt: skip


def _weights(x: torch.Tensor, importance: torch.Tensor | None, block: int, *, by_size: bool = True) -> torch.Tensor:
    size = SQUARE if importance is None else ROOT if by_size else NOTHING
    return weights(x, importance, block, size, smallest=float(TINY))


def _store(type_name: str, x: torch.Tensor, steps: torch.Tensor, found: Found) -> None:
    """Write the codes of the weights `x` on the final `steps` of their groups."""
    format = FORMATS[type_name]
    levels, groups = device_levels(format, x.device), x.numel() // format.group
    launch(
        step_search.store, groups, x, steps, levels.table, levels.code_of, found.codes, groups, x.shape[1],
        levels.lowest, levels.highest, GROUP=format.group, CODEBOOK=levels.codebook,
    )  # fmt: skip


SEARCHES = {
    **{name: partial(_search, name) for name in WITH_CODES},
    **{name: partial(_search_blocks, name) for name in WITHOUT_CODES},
    "Q8_0": partial(_round_blocks, "Q8_0"),
}

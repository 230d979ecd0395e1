"""Q2_K, Q4_K and Q5_K: what the CPU tries is tried here."""

from __future__ import annotations

from functools import partial

import torch

from quantkit.formats.gguf.blocks.table import FORMATS, SUPER, BlockFormat
from quantkit.quantize.kquants.arithmetic import SMALLEST
from quantkit.quantize.kquants.cuda import minimum_kernels as kernels
from quantkit.quantize.kquants.cuda.found import Found
from quantkit.quantize.kquants.cuda.launch import launch
from quantkit.quantize.kquants.cuda.tables import device_numbers
from quantkit.quantize.kquants.cuda.weights import ROOT, weights
from quantkit.quantize.kquants.minimum_types import EFFORTS, FACTOR_RATIOS


def _search(format: BlockFormat, x: torch.Tensor, importance: torch.Tensor | None, found: Found) -> None:
    assert format.scale_range is not None
    assert found.minimums is not None
    effort, rows = EFFORTS[format.name], x.shape[1]
    highest, code_max = float(format.levels[-1]), float(format.scale_range[1])
    blocks, groups = x.numel() // SUPER, x.numel() // format.group
    kept, factors = x.new_empty(kernels.FIELDS, groups), x.new_empty(2, blocks)
    ratios = device_numbers(tuple(effort.ratios.tolist()), x.device)
    factor_ratios = device_numbers(tuple(FACTOR_RATIOS.tolist()), x.device)
    w = weights(x, importance, SUPER, ROOT, float(effort.spread), float(SMALLEST))
    launch(
        kernels.search_steps, groups, x, w, ratios, kept, groups, rows, highest, TRIES=len(ratios),
        FITS=effort.fits, GROUP=format.group,
    )  # fmt: skip
    launch(
        kernels.search_factors, blocks, kept, factors, factor_ratios, blocks, rows, code_max,
        TRIES=len(factor_ratios), GROUPS=format.groups,
    )  # fmt: skip
    for reach in effort.reaches.tolist():
        launch(
            kernels.revise, groups, x, w, kept, factors, groups, rows, blocks, highest, code_max,
            REACH=reach, GROUP=format.group,
        )  # fmt: skip
        launch(kernels.refit, blocks, kept, factors, blocks, rows, GROUPS=format.groups)
    found.scales.copy_(factors[0].view_as(found.scales))
    found.minimums.copy_(factors[1].view_as(found.minimums))
    launch(
        kernels.store, groups, x, kept, factors, found.codes, found.scale_codes, found.minimum_codes, groups, rows,
        blocks, highest, GROUP=format.group,
    )  # fmt: skip


SEARCHES = {name: partial(_search, FORMATS[name]) for name in EFFORTS}

"""What kernels read beside weights: levels and tries, brought to the device once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from quantkit.formats.gguf.blocks.table import BlockFormat
from quantkit.quantize.blocks.levels import NEAREST, levels_of


@dataclass(frozen=True)
class DeviceLevels:
    """The levels of a format as `step_search` wants them; without a codebook the tables are never read."""

    lowest: float
    highest: float
    codebook: bool
    table: torch.Tensor
    code_of: torch.Tensor


@cache
def device_levels(format: BlockFormat, device: torch.device) -> DeviceLevels:
    """The levels of `format` in the memory of `device`."""
    levels = levels_of(format)
    table = torch.from_numpy(NEAREST[levels.nearest or 0 :]).to(device)
    code_of = torch.from_numpy(levels.code_of).to(device)
    return DeviceLevels(float(levels.lowest), float(levels.highest), levels.nearest is not None, table, code_of)


@cache
def device_numbers(numbers: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """`numbers` as float32 in the memory of `device`."""
    return torch.tensor(numbers, dtype=torch.float32, device=device)

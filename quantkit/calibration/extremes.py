"""How large activations get where they enter the down projections: what llama.cpp's CUDA kernels overflow on.

They quantize activations in blocks of 32 and keep a block's sum as float16 (ggml's q8_1), see recipe/overflow.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from quantkit.arrays import Float32
from quantkit.forward.rows import block_extremes
from quantkit.forward.statistics import Measured, Site

BLOCK = 32
F16_MAX = 65504.0
# A few hundred thousand tokens do not show the largest activation there is: half of the limit counts as a risk.
RISK = 0.5


class ActivationExtremes:
    """Per expert and block of 32 columns: the largest |x| and the largest |sum of a block| that entered w2."""

    sites = frozenset({Site.EXPERT_MIDDLE})

    def __init__(self, experts: int, width: int) -> None:
        self._extremes = np.zeros((experts, 2, width // BLOCK), np.float32)

    def measure(self, site: Site, rows: torch.Tensor) -> torch.Tensor:
        """Extremes of `rows` [M, W], float32 [2, W / 32]."""
        return block_extremes(rows, BLOCK)

    def collect(self, measured: Measured) -> None:
        """Keep the larger values."""
        here = self._extremes[measured.expert]
        np.maximum(here, measured.value.cpu().numpy(), out=here)

    def take(self) -> Float32:
        """Return the layer's extremes [experts, 2, W / 32] and start again for the next one."""
        taken = self._extremes.copy()
        self._extremes[:] = 0
        return taken


def overflow_risks(name: str, extremes: Float32) -> dict[str, Any] | None:
    """What a report says of tensor `name` with `extremes` [experts, 2, blocks]; None when far from the limit."""
    largest, largest_sum = extremes[:, 0].max(1), extremes[:, 1].max(1)
    experts = np.flatnonzero(np.maximum(largest, largest_sum) > RISK * F16_MAX)
    if not len(experts):
        return None
    return {
        "tensor": name,
        "experts": experts.tolist(),
        "largest_activation": float(largest.max()),
        "largest_block_sum": float(largest_sum.max()),
        "overflows": bool(max(largest.max(), largest_sum.max()) > F16_MAX),
    }

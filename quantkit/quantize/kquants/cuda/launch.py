"""How kernels are started: how many lanes a program has, and with which rounding.

A lane is a group or a block of one row, and computes by itself in the order in which the CPU does. Products and sums
are fused where a kernel says `fma` and nowhere else: results do not depend on what a compiler makes of a kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

# Lanes of a program: four warps of a card; of the interpreter, which is slow per operation and not per lane, all that
# Triton allows.
CARD_LANES, MOST_LANES = 128, 2**20
# Index arithmetic is in 32 bits.
MOST_WEIGHTS = 2**31 - 1


def launch(kernel: Any, lanes: int, *arguments: Any, **constants: Any) -> None:
    """Start `kernel` on so many `lanes`, on the device of its first argument, a tensor."""
    first: torch.Tensor = arguments[0]
    width = CARD_LANES if first.is_cuda else min(triton.next_power_of_2(lanes), MOST_LANES)
    kernel[(triton.cdiv(lanes, width),)](
        *arguments, **constants, LANES=width, num_warps=4, num_stages=1, enable_fp_fusion=False
    )

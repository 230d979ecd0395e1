"""Small pieces of the kernels, rounded as the compiled loops of the CPU round; see `kquants.arithmetic`."""

from __future__ import annotations

import triton
import triton.language as tl

from quantkit.quantize.kquants import arithmetic

ROUNDER = tl.constexpr(float(arithmetic.ROUNDER))
SMALLEST = tl.constexpr(float(arithmetic.SMALLEST))


@triton.jit
def reciprocal(value: tl.tensor) -> tl.tensor:
    """1 / value, or 0 for what is not well above 0."""
    return tl.where(value > SMALLEST, tl.div_rn(1.0, value), 0.0)


@triton.jit
def nearest_code(value: tl.tensor, lowest: tl.tensor, highest: tl.tensor) -> tl.tensor:
    """The nearest integer, the even one of two that are as near, from `lowest` to `highest`."""
    return tl.minimum(tl.maximum(value + ROUNDER, lowest + ROUNDER), highest + ROUNDER) - ROUNDER


@triton.jit
def nearest_half(value: tl.tensor) -> tl.tensor:
    """The float16 nearest to a float32, as float32."""
    return value.to(tl.float16).to(tl.float32)

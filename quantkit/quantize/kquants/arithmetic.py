"""Arithmetic inside compiled loops that numba has no name for, rounded the same everywhere.

Loops that use it are compiled without leave to fuse: what is fused says so, and the bytes that a search finds depend
neither on the compiler nor on the processor.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# The sign of a zero does not matter: minimum and maximum are then one instruction.
FASTMATH = {"nsz"}
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
# From two thirds of this number to a third more float32 numbers are integers: adding it and taking it away rounds.
ROUNDER = np.float32(3 << 22)
# What is smaller counts as 0: so would its reciprocal's products overflow.
SMALLEST = np.float32(1e-30)


@intrinsic
def fma(context: Any, one: Any, other: Any, addend: Any) -> Any:
    """one * other + addend in float32, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@intrinsic
def select(context: Any, condition: Any, one: Any, other: Any) -> Any:
    """`one` if `condition` else `other`, both float32 and both computed: branches would keep loops out of vectors."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return types.float32(types.boolean, types.float32, types.float32), generate


@intrinsic
def nearest_half(context: Any, value: Any) -> Any:
    """The float16 nearest to a float32, as float32; infinite from 65520 on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.fptrunc(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.float32), generate


@numba.njit(forceinline=True)
def reciprocal(value: Any) -> Any:
    """1 / value, or 0 for what is not well above 0."""
    return select(value > SMALLEST, ONE / value, ZERO)

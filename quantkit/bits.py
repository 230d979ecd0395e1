"""Bit patterns of float32 and bfloat16 inside compiled loops.

numba has no bfloat16: such values travel as uint16 holding the upper half of a float32's bits.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

U32 = np.uint32


@intrinsic
def float_from_bits(context: Any, bits: Any) -> Any:
    """The float32 whose bits are the uint32 `bits`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def bits_from_float(context: Any, value: Any) -> Any:
    """The bits of a float32 as uint32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@numba.njit(inline="always")
def widen(half: Any) -> Any:
    """bfloat16 bits (uint16) to float32; exact."""
    return float_from_bits(U32(half) << U32(16))


@numba.njit(inline="always")
def narrow(value: Any) -> Any:
    """float32 to bfloat16 bits (uint16), rounded to nearest even as torch does. NaN stays NaN."""
    bits = bits_from_float(value)
    return np.uint16((bits + U32(0x7FFF) + ((bits >> U32(16)) & U32(1))) >> U32(16))

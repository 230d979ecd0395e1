"""Bit patterns of float32 and bfloat16 inside compiled loops.

numba has no bfloat16: such values travel as uint16 holding the upper half of a float32's bits.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

U16, U32 = np.uint16, np.uint32


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


@intrinsic
def float_from_half_bits(context: Any, bits: Any) -> Any:
    """The float32 of a float16 given by its bits, uint16: one instruction where the processor has F16C, or NEON."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@numba.njit(inline="always")
def narrow(value: Any) -> Any:
    """float32 to bfloat16 bits (uint16), rounded to nearest even as torch does. NaN stays NaN."""
    bits = bits_from_float(value)
    return np.uint16((bits + U32(0x7FFF) + ((bits >> U32(16)) & U32(1))) >> U32(16))


def load(value: Any) -> Any:
    """In compiled code: a float32 as it is, bfloat16 bits (uint16) widened."""
    raise NotImplementedError


@overload(load, inline="always")
def _load(value: Any) -> Any:
    def as_it_is(value: Any) -> Any:
        return value

    def widened(value: Any) -> Any:
        return float_from_bits(U32(value) << U32(16))

    return widened if value == types.uint16 else as_it_is


def store(target: Any, index: Any, value: Any) -> Any:
    """In compiled code: target[index] = value for float32 arrays, rounded for arrays of bfloat16 bits (uint16)."""
    raise NotImplementedError


@overload(store, inline="always")
def _store(target: Any, index: Any, value: Any) -> Any:
    def as_it_is(target: Any, index: Any, value: Any) -> Any:
        target[index] = value

    def rounded(target: Any, index: Any, value: Any) -> Any:
        target[index] = narrow(value)

    return rounded if target.dtype == types.uint16 else as_it_is

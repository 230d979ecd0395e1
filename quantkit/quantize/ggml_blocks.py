"""ggml's packed blocks to float32, by ggml's own code in the library that the xllamacpp wheel carries.

ctypes releases the GIL for the length of a call, so Python threads dequantize in parallel.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from quantkit.arrays import Bytes, Float32
from quantkit.checkpoint.dequant import to_float32

FLOAT_TYPES = ("F32", "F16", "BF16")


def can_dequantize(type_name: str) -> bool:
    """Whether `dequantize` takes blocks of this type."""
    return type_name in FLOAT_TYPES or _row_function(type_name) is not None


def dequantize(packed: Bytes, type_name: str, columns: int) -> Float32:
    """Return the weights of `packed` uint8 [R, bytes per row], float32 [R, columns]; exact.

    NaN and infinite block scales are not looked for. Source of the method: ggml-quants.c.
    """
    if type_name in FLOAT_TYPES:
        return to_float32(packed.reshape(-1), type_name, (len(packed), columns))
    function = _row_function(type_name)
    if function is None:
        raise ValueError(f"ggml has no float32 for type {type_name}")
    values = np.empty((len(packed), columns), np.float32)
    packed = np.ascontiguousarray(packed)
    function(packed.ctypes.data, values.ctypes.data, values.size)
    return values


@cache
def _row_function(type_name: str) -> Any:
    """ggml's function (blocks, float32 out, weights) for a type, None where it has none."""
    # Loads 100 MB of llama.cpp, only wanted for a GGUF.
    from xllamacpp import xllamacpp

    name = type_name.lower()
    if name.endswith("_k"):  # q4_K, but iq4_nl
        name = name[:-1] + "K"
    function = getattr(ctypes.CDLL(xllamacpp.__file__), f"dequantize_row_{name}", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        function.restype = None
    return function

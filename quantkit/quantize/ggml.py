"""ggml's own quantizers, called through ctypes in the library that the xllamacpp wheel carries.

ctypes releases the GIL for the length of a call, so Python threads quantize in parallel.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.metadata import version

import gguf
import numpy as np

from quantkit.arrays import Bytes, Float32
from quantkit.formats.gguf.types import row_bytes


@cache
def _library() -> ctypes.CDLL:
    # Loads 100 MB of llama.cpp, only wanted when quantizing.
    from xllamacpp import xllamacpp

    library = ctypes.CDLL(xllamacpp.__file__)
    library.ggml_quantize_init.argtypes = [ctypes.c_int]
    library.ggml_quantize_init.restype = None
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,  # type
        ctypes.c_void_p,  # float32 source
        ctypes.c_void_p,  # destination
        ctypes.c_int64,  # first element
        ctypes.c_int64,  # rows
        ctypes.c_int64,  # weights per row
        ctypes.c_void_p,  # importance per column, or NULL
    ]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    return library


@cache
def prepare(type_number: int) -> None:
    """Make ggml ready for a type, once."""
    # Builds the codebook tables of the IQ types; ggml guards it with its own lock.
    _library().ggml_quantize_init(type_number)


def library_version() -> str:
    """Version of the wheel whose ggml quantizes; part of an output's provenance."""
    return f"xllamacpp {version('xllamacpp')}"


def quantize(weights: Float32, type_name: str, importance: Float32 | None = None) -> Bytes:
    """Return `weights` float32 [R, K] as packed blocks of `type_name`, uint8 [R, bytes per row].

    `importance` float32 [K] says how much an error in each column matters; None leaves that to ggml, which some types
    answer by ending the process. K must be a multiple of the type's block size and the weights finite. Source of the
    method: ggml-quants.c.
    """
    rows, columns = weights.shape
    number = int(gguf.GGMLQuantizationType[type_name])
    packed = np.empty((rows, row_bytes(type_name, columns)), np.uint8)
    source = np.ascontiguousarray(weights)
    columns_weight = None if importance is None else np.ascontiguousarray(importance, np.float32)
    if columns_weight is not None and columns_weight.shape != (columns,):
        raise ValueError(f"importance of shape {columns_weight.shape} for rows of {columns} weights")
    prepare(number)
    written = _library().ggml_quantize_chunk(
        number,
        source.ctypes.data,
        packed.ctypes.data,
        0,
        rows,
        columns,
        None if columns_weight is None else columns_weight.ctypes.data,
    )
    if written != packed.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {type_name} where {packed.nbytes} were expected")
    return packed


def valid(packed: Bytes, type_name: str) -> bool:
    """Whether ggml's own check finds every block scale in `packed` finite."""
    number = int(gguf.GGMLQuantizationType[type_name])
    return bool(_library().ggml_validate_row_data(number, packed.ctypes.data, packed.nbytes))

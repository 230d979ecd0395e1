"""Rows in, ggml's blocks out, for the types whose search is our own.

A search is a function of a strip of rows [K, LANES], the importance of its columns [K] and the `Found` to fill.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quantkit.arrays import Bytes, Float32
from quantkit.formats.gguf.blocks.table import FORMATS
from quantkit.formats.gguf.types import row_bytes
from quantkit.quantize.kquants import minimum_types, signed_types
from quantkit.quantize.kquants.found import Found, buffers, packed
from quantkit.quantize.kquants.rows import Rows
from quantkit.quantize.kquants.tiles import LANES, load

Search = Callable[[Float32, Float32 | None, Found], None]

SEARCHES: dict[str, Search] = {**minimum_types.SEARCHES, **signed_types.SEARCHES}
TYPES = frozenset(SEARCHES)


def quantize(rows: Rows, type_name: str, importance: Float32 | None = None) -> Bytes:
    """Return finite `rows` [R, K] as packed blocks of `type_name`, one of TYPES: uint8 [R, bytes per row].

    `importance` float32 [K], not negative and not 0 for a whole group, says how much an error in each column matters;
    None says that all columns are alike. K must be a multiple of the type's block size. A row's result does not depend
    on the rows beside it. Raises NotRepresentable where a block scale exceeds float16.
    """
    count, columns = rows.shape
    if importance is not None and importance.shape != (columns,):
        raise ValueError(f"importance of shape {importance.shape} for rows of {columns} weights")
    search, format = SEARCHES[type_name], FORMATS[type_name]
    result = np.empty((count, row_bytes(type_name, columns)), np.uint8)
    strip, found = np.zeros((columns, LANES), np.float32), buffers(format, columns)
    for first in range(0, count, LANES):
        filled = load(rows, first, strip)
        search(strip, importance, found)
        result[first : first + filled] = packed(found, format, filled)
    return result

"""Rows in, ggml's blocks out, on a card: the types of `kquants.quantize` by the same search.

A search is a function of turned weights [K, R], the importance of their columns [K] and the `Found` to fill.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from quantkit.formats.gguf.blocks.table import FORMATS
from quantkit.quantize.kquants.cuda import minimum_types, signed_types
from quantkit.quantize.kquants.cuda.found import Found, buffers, finite, packed
from quantkit.quantize.kquants.cuda.launch import MOST_WEIGHTS

Search = Callable[[torch.Tensor, torch.Tensor | None, Found], None]

SEARCHES: dict[str, Search] = {**minimum_types.SEARCHES, **signed_types.SEARCHES}
TYPES = frozenset(SEARCHES)
# Rows for which kernels are compiled: like most numbers of rows, a multiple of 16.
SAMPLE_ROWS = 16


def quantize(
    turned: torch.Tensor, type_name: str, importance: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `turned` float32 [K, R] in `type_name`, one of TYPES: uint8 [R, bytes per row], and whether it is sound.

    `importance` float32 [K] is as in `kquants.quantize`. Everything is on the device of `turned`, and nothing waits for
    it; the second answer, a bool [], is False where a block scale exceeds float16: then the bytes are not to be used.
    K must be a multiple of the type's block size. ValueError for more than 2^31 - 1 weights.
    """
    columns, rows = turned.shape
    if turned.numel() > MOST_WEIGHTS:
        raise ValueError(f"{turned.numel()} weights at once, and {MOST_WEIGHTS} are the most that kernels count")
    format = FORMATS[type_name]
    found = buffers(format, columns, rows, turned.device)
    SEARCHES[type_name](turned, importance, found)
    return packed(found, format), finite(found)


def prepare(type_names: set[str], device: torch.device) -> None:
    """Compile the kernels of `type_names` for `device`, which otherwise happens with the first rows of a type."""
    for name in sorted(type_names & TYPES):
        sample = torch.zeros(FORMATS[name].block, SAMPLE_ROWS, device=device)
        quantize(sample, name)
        quantize(sample, name, torch.ones(len(sample), device=device))

"""The one seam between the pipeline and the quantizers: float32 rows in, packed rows out."""

from __future__ import annotations

import gguf
import numpy as np

from quantkit.arrays import Bytes, Float32
from quantkit.quantize import ggml

# Types without a search: a cast per weight, done by gguf-py in numpy.
CAST_TYPES = frozenset({"F32", "F16", "BF16"})


F16_MAX = 65504


class NotRepresentable(ValueError):
    """A weight is too large for the type: the result would hold an infinity."""


def prepare(type_names: set[str]) -> None:
    """Load ggml and build its tables for `type_names`, which otherwise happens with the first rows of a type."""
    for name in sorted(type_names - CAST_TYPES):
        ggml.prepare(int(gguf.GGMLQuantizationType[name]))


def quantize_rows(weights: Float32, type_name: str) -> Bytes:
    """Return finite `weights` float32 [R, K] in ggml type `type_name`, uint8 [R, bytes per row].

    The result of a row does not depend on the rows beside it. Raises NotRepresentable when a weight or a block scale
    does not fit in the type's half-precision numbers.
    """
    if type_name in CAST_TYPES:
        with np.errstate(over="ignore"):
            cast: Bytes = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[type_name])
        if type_name == "F16" and not np.isfinite(cast.view(np.float16)).all():
            raise NotRepresentable("a weight exceeds 65504, the largest F16 value")
        if type_name == "BF16" and ((cast.view(np.uint16) & 0x7F80) == 0x7F80).any():
            raise NotRepresentable("a weight exceeds 3.39e38, the largest BF16 value")
        return cast.view(np.uint8)
    # Block scales are half-precision numbers. ggml finds that out as well, but it writes on stderr.
    if np.abs(weights).max(initial=0) > F16_MAX:
        raise NotRepresentable("a weight exceeds 65504, the largest block scale")
    packed = ggml.quantize(weights, type_name)
    if not ggml.valid(packed, type_name):
        raise NotRepresentable(f"a block scale of {type_name} is not finite")
    return packed

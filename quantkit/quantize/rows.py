"""The one seam between the pipeline and the quantizers: rows of weights in, packed rows out."""

from __future__ import annotations

from collections.abc import Iterable

import gguf
import numpy as np

from quantkit import __version__
from quantkit.arrays import Bytes, Float32
from quantkit.checkpoint.dequant import largest_of_fp8
from quantkit.formats.gguf.types import block_size
from quantkit.quantize import ggml
from quantkit.quantize.kquants import quantize as own
from quantkit.quantize.kquants.importance import levelled
from quantkit.quantize.kquants.rows import NotRepresentable, Rows

# Types without a search: a cast per weight, done by gguf-py in numpy.
CAST_TYPES = frozenset({"F32", "F16", "BF16"})

# Types whose result does not depend on the importance of columns: casts, and blocks that are rounded without a search.
UNWEIGHTED_TYPES = CAST_TYPES | {"Q8_0", "MXFP4"}

# Types with so few bits that llama-quantize does not make them without importance: the result would be garbage.
TYPES_THAT_NEED_IMPORTANCE = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})

F16_MAX = 65504

# Smallest run of columns with a scale of its own, over all types.
SCALE_GROUP = 16
# Mean squares below this are as good as zero: ggml's float32 sums of them underflow.
NO_IMPORTANCE = 1e-20


# What `--kquants` may be: the searches of kquants where they make the type, or ggml's for all types.
OWN, GGML = "own", "ggml"


class ImportanceMissing(ValueError):
    """The type cannot be made without the importance of every column."""


def makers(type_names: Iterable[str], kquants: str) -> str:
    """Programs and versions that quantize to `type_names` under `kquants`; part of an output's provenance."""
    ours = [f"quantkit {__version__}"] if kquants == OWN else []
    theirs = [] if ours and not any(_made_by_ggml(name, kquants) for name in type_names) else [ggml.library_version()]
    return ", ".join(ours + theirs)


def prepare(type_names: set[str], kquants: str) -> None:
    """Load what quantizes to `type_names` and build its tables, which otherwise happens with a type's first rows."""
    for name in sorted(type_names - CAST_TYPES):
        if _made_by_ggml(name, kquants):
            ggml.prepare(int(gguf.GGMLQuantizationType[name]))
        else:
            own.quantize(Rows(np.zeros((1, block_size(name)[0]), np.float32)), name)


def quantize_rows(rows: Rows, type_name: str, importance: Float32 | None = None, kquants: str = OWN) -> Bytes:
    """Return finite `rows` [R, K] in ggml type `type_name`, uint8 [R, bytes per row].

    `importance` float32 [K] is the mean square of each column's input, from an importance matrix; the search for
    block scales then weighs errors by it. The result of a row does not depend on the rows beside it. Raises
    NotRepresentable when a weight or a block scale does not fit in the type's half-precision numbers, and
    ImportanceMissing for a type that cannot do without.
    """
    if type_name in CAST_TYPES:
        return _cast(rows.float32(), type_name)
    # Block scales are half-precision numbers. ggml finds that out as well, but it writes on stderr.
    if _largest(rows) > F16_MAX:
        raise NotRepresentable("a weight exceeds 65504, the largest block scale")
    weighted = search_importance(type_name, importance, kquants)
    if not _made_by_ggml(type_name, kquants):
        return own.quantize(rows, type_name, weighted)
    packed = ggml.quantize(rows.float32(), type_name, weighted)
    if not ggml.valid(packed, type_name):
        raise NotRepresentable(f"a block scale of {type_name} is not finite")
    return packed


def search_importance(type_name: str, importance: Float32 | None, kquants: str = OWN) -> Float32 | None:
    """What the search for `type_name` is given for `importance` [K]: None where it would not use it.

    Raises ImportanceMissing for a type that cannot do without.
    """
    if importance is None and type_name in TYPES_THAT_NEED_IMPORTANCE:
        raise ImportanceMissing(f"{type_name} needs an importance matrix")
    if importance is None or type_name in UNWEIGHTED_TYPES:
        return None
    alive = _without_dead_groups(importance)
    return alive if _made_by_ggml(type_name, kquants) else levelled(alive)


def _made_by_ggml(type_name: str, kquants: str) -> bool:
    return type_name not in CAST_TYPES and (kquants == GGML or type_name not in own.TYPES)


def _largest(rows: Rows) -> float:
    """Largest magnitude of the weights; without a copy of them."""
    if rows.values is not None:
        return max(float(rows.values.max(initial=0)), -float(rows.values.min(initial=0)))
    assert rows.codes is not None
    assert rows.scale is not None
    return largest_of_fp8(rows.codes, rows.scale, rows.block, rows.first_row)


def _cast(weights: Float32, type_name: str) -> Bytes:
    with np.errstate(over="ignore"):
        cast: Bytes = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[type_name])
    if type_name == "F16" and not np.isfinite(cast.view(np.float16)).all():
        raise NotRepresentable("a weight exceeds 65504, the largest F16 value")
    if type_name == "BF16" and ((cast.view(np.uint16) & 0x7F80) == 0x7F80).any():
        raise NotRepresentable("a weight exceeds 3.39e38, the largest BF16 value")
    return cast.view(np.uint8)


def _without_dead_groups(importance: Float32) -> Float32:
    """Give columns of groups that have no importance at all the smallest that any other column has.

    ggml finds the scale 0 for such a group, whatever its weights are: inputs that were silent during calibration would
    be cut off for good. Groups with any importance keep theirs, zeros included.
    """
    groups = importance.reshape(-1, SCALE_GROUP)
    dead = groups.max(axis=1) < NO_IMPORTANCE
    if not dead.any():
        return importance
    alive = importance[importance >= NO_IMPORTANCE]
    return np.where(dead[:, None], alive.min() if alive.size else np.float32(1), groups).reshape(-1)

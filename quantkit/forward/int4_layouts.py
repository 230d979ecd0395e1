"""Which stored tensors make up each weight of a checkpoint with packed integers, and how these become codes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.checkpoint.header import TensorEntry
from quantkit.checkpoint.index import Checkpoint
from quantkit.errors import BadInput
from quantkit.formats import awq, compressed_tensors, gptq
from quantkit.formats.packed import FORMATS
from quantkit.formats.words import codes_per_word, unpack_columns
from quantkit.forward.int4_schemes import PackedScheme
from quantkit.forward.stored import role_shape
from quantkit.model import minimax_m2
from quantkit.model.spec import HParams, Kind, Role
from quantkit.model.tensors import role_places
from quantkit.quantize.integers import IntegerGrid, Quantized

FP8 = "F8_E4M3"
# The scale of an FP8 weight: in compressed-tensors, and in the source.
FP8_SCALES = ("weight_scale", "weight_scale_inv")
PACKABLE = (Kind.LINEAR, Kind.EXPERT)
INTEGERS, FLOATS = ("I32", "U32", "I64"), minimax_m2.FLOATS

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Layout:
    """A format's tensors beside the ones that quantkit writes, and the way back from arrays whose floats are float32.

    `first` is the suffix that tells a packed weight.
    """

    first: str
    optional: tuple[str, ...]
    unpack: Callable[[Arrays, IntegerGrid], Quantized]


@dataclass(frozen=True)
class PackedMatrix:
    """A weight [N, K] as integers: the names of its tensors by suffix."""

    module: str
    names: dict[str, str]
    grid: IntegerGrid
    layout: Layout


@dataclass(frozen=True)
class PlainTensor:
    """A tensor stored as float, or in FP8 with the block scales called `scale`."""

    name: str
    scale: str | None


Stored = PackedMatrix | PlainTensor
Placed = dict[tuple[str, int | None], tuple[Stored, ...]]


def _unpack_gptq(arrays: Arrays, grid: IntegerGrid) -> Quantized:
    width = arrays["qweight"].shape[0] * codes_per_word(grid.bits)
    in_order = np.arange(width, dtype=np.int32) // np.int32(grid.columns(width))
    return gptq.unpack({"g_idx": in_order} | arrays, grid)  # files made without an order may leave it out


def _unpack_compressed(arrays: Arrays, grid: IntegerGrid) -> Quantized:
    # quantkit.formats reads its own files, with bfloat16 scales and no zero points; others have either.
    codes, scales = unpack_columns(arrays["weight_packed"], grid.bits), arrays["weight_scale"]
    zeros = np.full(scales.shape, grid.middle, np.uint8)
    if "weight_zero_point" in arrays:
        # Zeros are packed along the rows, shifted as the codes are.
        zeros = np.ascontiguousarray(unpack_columns(arrays["weight_zero_point"].T, grid.bits).T)
    return Quantized(codes, scales, zeros)


LAYOUTS = {
    awq.NAME: Layout("qweight", (), awq.unpack),
    gptq.NAME: Layout("qweight", ("g_idx",), _unpack_gptq),
    compressed_tensors.NAME: Layout("weight_packed", ("weight_zero_point",), _unpack_compressed),
}


def lay_out(checkpoint: Checkpoint, hparams: HParams, scheme: PackedScheme) -> Placed:
    """Return every weight of the model with its tensors, one per expert where it is stacked.

    Raises BadInput naming file and tensor for what is missing, unknown, or of another shape or dtype than the scheme
    says.
    """
    modules: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in checkpoint.tensors.items():
        module, _, suffix = name.rpartition(".")
        modules.setdefault(module, {})[suffix] = entry
    placed: Placed = {}
    for role, layer in role_places(hparams):
        numbers = range(hparams.n_experts if role.kind is Kind.EXPERT else 1)
        names = (role.source.format(layer=layer, expert=number) for number in numbers)
        placed[role.name, layer] = tuple(_take(checkpoint, modules, role, name, hparams, scheme) for name in names)
    for module, parts in modules.items():
        layer_number = re.match(r"model[.]layers[.](\d+)[.]", module)
        if layer_number and int(layer_number[1]) >= hparams.n_layers:
            continue  # predicts further tokens; no runtime loads these layers
        for entry in parts.values():
            raise BadInput(f"{entry.path}: tensor {entry.name} is not known to {minimax_m2.ARCHITECTURE} here")
    return placed


def _take(
    checkpoint: Checkpoint,
    modules: dict[str, dict[str, TensorEntry]],
    role: Role,
    name: str,
    hparams: HParams,
    scheme: PackedScheme,
) -> Stored:
    """Take the tensors of one weight out of `modules`."""
    module, _, suffix = name.rpartition(".")
    parts = modules.get(module, {})
    shape = role_shape(role, hparams)
    layout = LAYOUTS[scheme.method]
    if role.kind in PACKABLE and layout.first in parts:
        del modules[module]
        return _packed(module, parts, shape, scheme, layout)
    if suffix not in parts:
        raise BadInput(
            f"{checkpoint.folder}: tensor {name} is missing, in whatever form; download the checkpoint again"
        )
    entry = parts.pop(suffix)
    scale = None
    if entry.dtype == FP8 and role.kind in PACKABLE:
        scale = next((parts.pop(suffix) for suffix in FP8_SCALES if suffix in parts), None)
        if scale is None:
            raise BadInput(f"{entry.path}: tensor {name} is FP8 and has no block scales; download it again")
        blocks = tuple(-(-size // step) for size, step in zip(shape, scheme.block, strict=True))
        _check(scale, blocks, FLOATS)
    _check(entry, shape, FLOATS if scale is None else (FP8,))
    return PlainTensor(entry.name, None if scale is None else scale.name)


def _packed(
    module: str, parts: dict[str, TensorEntry], shape: tuple[int, ...], scheme: PackedScheme, layout: Layout
) -> PackedMatrix:
    rows, columns = shape
    grids = [IntegerGrid(bits, group, symmetric=False) for bits, group in sorted(scheme.grids)]
    expected = {}
    for grid in grids:
        specs = FORMATS[scheme.method].tensors(module, rows, columns, grid)
        expected = {spec.name.rpartition(".")[2]: spec.shape for spec in specs}
        if all(parts[suffix].shape == size for suffix, size in expected.items() if suffix in parts):
            break
    else:
        first = parts[layout.first]
        said = " or ".join(f"{grid.bits} bits in groups of {grid.group_size}" for grid in grids) or "no integers"
        raise BadInput(
            f"{first.path}: tensor {first.name} {list(first.shape)} and its scales are not a matrix {list(shape)} with "
            f"{said}, which config.json says"
        )
    if "weight_zero_point" in parts:
        _check(parts["weight_zero_point"], (rows // codes_per_word(grid.bits), grid.groups(columns)), INTEGERS)
    known = {*expected, *layout.optional}
    for suffix in known - parts.keys() - set(layout.optional):
        raise BadInput(
            f"{parts[layout.first].path}: tensor {module}.{suffix} is missing; download the checkpoint again"
        )
    for suffix, entry in parts.items():
        if suffix not in known:
            raise BadInput(f"{entry.path}: tensor {entry.name}: {scheme.method} weights with it are not read here")
        _check(entry, entry.shape, FLOATS if suffix in ("scales", "weight_scale") else INTEGERS)
    return PackedMatrix(module, {suffix: entry.name for suffix, entry in parts.items()}, grid, layout)


def _check(entry: TensorEntry, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    if entry.shape != shape:
        raise BadInput(f"{entry.path}: tensor {entry.name} has shape {list(entry.shape)}, expected {list(shape)}")
    if entry.dtype not in dtypes:
        raise BadInput(f"{entry.path}: tensor {entry.name} is {entry.dtype}, expected {' or '.join(dtypes)}")

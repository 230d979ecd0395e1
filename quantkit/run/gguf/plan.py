"""Everything that is decided before the first weight is read: types, importance, every byte's place in every file."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit import __version__
from quantkit.checkpoint.index import Checkpoint, open_checkpoint
from quantkit.errors import BadInput
from quantkit.formats.gguf.layout import Part, TensorSpec, lay_out
from quantkit.formats.gguf.metadata import Pair, array, boolean, string
from quantkit.formats.gguf.tokenizer import sampling_pairs, tokenizer_pairs
from quantkit.formats.gguf.types import check_row_length
from quantkit.model import minimax_m2
from quantkit.model.gguf_metadata import architecture_pairs, general_pairs
from quantkit.model.spec import Model
from quantkit.model.tensors import build_model
from quantkit.quantize.rows import GGML, OWN, makers
from quantkit.recipe.mixes import ModelShape, mix_by_name
from quantkit.recipe.recipe import Recipe, Resolved, resolve_types
from quantkit.run.gguf.importance import Importance, check_calibrated, importance_for, importance_pairs
from quantkit.run.gguf.items import Item, plan_items
from quantkit.run.journal import RunIdentity
from quantkit.run.output import protect_source

if TYPE_CHECKING:  # torch, which only calibrated runs and cards need
    import torch

    from quantkit.run.gguf.calibration import Calibration

DEFAULT_SPLIT = 48 * 10**9


@dataclass(frozen=True)
class Target:
    """A GGUF that is asked for."""

    path: Path
    recipe: Recipe


@dataclass(frozen=True)
class Output:
    """A GGUF that will be written, in one part or several; `quantizer` says what its types are made by."""

    path: Path
    recipe: Recipe
    resolved: Resolved
    importance: Importance | None
    quantizer: str
    parts: list[Part]

    @property
    def types(self) -> dict[str, str]:
        """ggml type by tensor."""
        return self.resolved.types


@dataclass(frozen=True)
class Plan:
    """Everything decided before the first weight is read; `kquants` is whose search makes k-quants."""

    checkpoint: Checkpoint
    model: Model
    outputs: list[Output]
    items: list[Item]
    kquants: str
    identity: RunIdentity = field(repr=False)

    @property
    def parts(self) -> list[Part]:
        """The parts of all outputs, as items count them."""
        return [part for output in self.outputs for part in output.parts]

    def stored_bytes(self, item: Item) -> int:
        """Bytes of the source that are read for `item`."""
        entry = self.checkpoint.tensors[item.source]
        return entry.nbytes * item.weights // math.prod(entry.shape)


def make_plan(
    source: Path,
    targets: Sequence[Target],
    split_max_size: int = DEFAULT_SPLIT,
    imatrix: Path | None = None,
    calibration: Calibration | None = None,
    kquants: str = OWN,
    device: torch.device | None = None,
) -> Plan:
    """Decide every tensor's type and every byte's place from headers alone; `imatrix` is read and checked as well.

    With `calibration` types are those of an importance matrix, and the files say what text was used.
    """
    if kquants not in (OWN, GGML):
        raise BadInput(f"--kquants {kquants!r}: choose {OWN} or {GGML}")
    if kquants == GGML and device is not None:
        raise BadInput(f"--kquants {GGML}: runs on the CPU alone; leave it out, or --device {device.type}")
    checkpoint = open_checkpoint(source)
    model = build_model(checkpoint)
    resolved = [_resolved(target.recipe, model, imatrix is not None or calibration is not None) for target in targets]
    outputs = []
    for target, types in zip(targets, resolved, strict=True):
        mix = mix_by_name(target.recipe.base)
        importance = None
        if calibration is None:
            importance = importance_for(imatrix, model, mix, types.types)
        else:
            check_calibrated(mix, types.types)
        quantizer = makers(_searched(model, types.types, calibration is not None), kquants)
        if device is not None:  # where two candidates are next to equal, a card may choose the other one
            quantizer += ", CUDA"
        pairs = [
            *general_pairs(model, source, mix.file_type),
            *sampling_pairs(source),
            *architecture_pairs(model),
            *tokenizer_pairs(source, model.hparams.vocab, minimax_m2.GGUF_TOKENIZER_PRE),
            *_provenance(checkpoint, target.recipe, types, quantizer),
            *importance_pairs(importance),
            *(calibration.pairs(model, types.types, targets[0].recipe.base) if calibration is not None else []),
        ]
        specs = [TensorSpec(tensor.gguf, types.types[tensor.gguf], tensor.shape) for tensor in model.tensors]
        parts = lay_out(target.path, model.architecture, pairs, specs, split_max_size)
        protect_source(source, parts)
        outputs.append(Output(target.path, target.recipe, types, importance, quantizer, parts))
    items = plan_items(checkpoint, model, [(output.types, output.parts) for output in outputs])
    return Plan(checkpoint, model, outputs, items, kquants, _identity(checkpoint, outputs))


def refuse_existing(parts: Sequence[Part]) -> None:
    """Raise BadInput when a final name is taken."""
    for part in parts:
        if part.path.exists():
            raise BadInput(f"{part.path}: output exists; choose another name or replace it with --force")


def _resolved(recipe: Recipe, model: Model, has_imatrix: bool) -> Resolved:
    hparams = model.hparams
    shape = ModelShape(
        hparams.n_layers, hparams.n_experts, hparams.n_heads, hparams.n_kv_heads, has_imatrix=has_imatrix
    )
    resolved = resolve_types(recipe, {tensor.gguf: tensor.shape for tensor in model.tensors}, shape)
    for tensor in model.tensors:
        check_row_length(tensor.gguf, resolved.types[tensor.gguf], tensor.shape[-1])
    return resolved


def _searched(model: Model, types: Mapping[str, str], compensated: bool) -> list[str]:
    """The types of the tensors that a search makes."""
    if not compensated:
        return list(types.values())
    from quantkit.run.gguf.calibration import tensors_without  # loads torch

    return [types[name] for name in tensors_without(model, types)]


def _provenance(checkpoint: Checkpoint, recipe: Recipe, resolved: Resolved, quantizer: str) -> list[Pair]:
    changes = [f"{change.tensor}: {change.before} -> {change.after}" for change in resolved.overflow_changes]
    return [
        string("general.quantized_by", f"quantkit {__version__}"),
        string("quantkit.version", __version__),
        string("quantkit.quantizer", quantizer),
        string("quantkit.mix", recipe.base),
        string("quantkit.recipe", recipe.model_dump_json()),
        string("quantkit.source.layout_sha256", checkpoint.layout_hash()),
        boolean("quantkit.overflow_guard", recipe.overflow_guard),
        array("quantkit.overflow_guard.changes", changes),
    ]


def _identity(checkpoint: Checkpoint, outputs: Sequence[Output]) -> RunIdentity:
    digest = hashlib.sha256()
    for output in outputs:
        for part in output.parts:
            digest.update(os.fsencode(part.path.name) + b"\0" + part.header)
    bases = ", ".join(output.recipe.base for output in outputs)
    return RunIdentity(digest.hexdigest(), checkpoint.shard_marks(), f"{bases} of {checkpoint.folder}")

"""FP8 or BF16 shards to GGUF in one pass: open, resolve types, lay out, quantize straight into place, publish."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.checkpoint.index import Checkpoint, open_checkpoint
from quantkit.checkpoint.reader import Reader
from quantkit.errors import BadInput
from quantkit.files import partial_path
from quantkit.formats.gguf.layout import Part, TensorSpec, lay_out
from quantkit.formats.gguf.metadata import Pair, array, boolean, string
from quantkit.formats.gguf.tokenizer import sampling_pairs, tokenizer_pairs
from quantkit.formats.gguf.types import check_row_length, tensor_bytes
from quantkit.model import minimax_m2
from quantkit.model.gguf_metadata import architecture_pairs, general_pairs
from quantkit.model.spec import Model
from quantkit.model.tensors import build_model
from quantkit.quantize.ggml import library_version
from quantkit.quantize.rows import NotRepresentable, prepare, quantize_rows
from quantkit.recipe.mixes import ModelShape, mix_by_name
from quantkit.recipe.recipe import Change, Recipe, Resolved, resolve_types
from quantkit.run.executor import check_budget, run_items
from quantkit.run.importance import Importance, importance_for, importance_pairs
from quantkit.run.journal import COMPLETE, Journal, RunIdentity
from quantkit.run.output import OutputFiles, check_disk, check_folder, protect_source, publish
from quantkit.run.plan import Item, plan_items
from quantkit.run.progress import WeightProgress
from quantkit.run.sizes import available_threads, memory_budget, peak_resident

DEFAULT_SPLIT = 48 * 10**9


@dataclass(frozen=True)
class GGUFResult:
    """What a run wrote; sizes in bytes. `resumed_items` were on disk from an earlier, interrupted run."""

    outputs: tuple[Path, ...]
    mix: str
    weights: int
    source_bytes: int
    output_bytes: int
    tensor_bytes: int
    seconds: float
    peak_rss: int
    items: int
    resumed_items: int
    types: dict[str, int]
    overflow_changes: tuple[Change, ...]
    importance: Importance | None
    ignored: tuple[str, ...]

    @property
    def bits_per_weight(self) -> float:
        """Tensor data only, as llama.cpp counts; tokenizer and keys are not weights."""
        return self.tensor_bytes * 8 / self.weights


@dataclass(frozen=True)
class Plan:
    """Everything decided before the first weight is read."""

    checkpoint: Checkpoint
    model: Model
    resolved: Resolved
    importance: Importance | None
    parts: list[Part]
    items: list[Item]
    identity: RunIdentity = field(repr=False)


def write_gguf(
    source: Path,
    out: Path,
    recipe: Recipe,
    *,
    imatrix: Path | None = None,
    split_max_size: int = DEFAULT_SPLIT,
    threads: int | None = None,
    memory: int | None = None,
    force: bool = False,
    quiet: bool = False,
) -> GGUFResult:
    """Quantize the checkpoint in `source` to the GGUF `out` (or its split parts) as `recipe` says.

    `imatrix` is an importance matrix of this model, GGUF or `.dat`; `memory` bounds the whole process in bytes. A rerun
    after an interruption does only what is missing and ends in the same bytes. Raises BadInput before anything is
    written when source, recipe, importance matrix, memory or disk cannot do it.
    """
    started = time.monotonic()
    check_folder(out)
    plan = make_plan(source, out, recipe, split_max_size, imatrix)
    refuse_existing(plan.parts, out, force)
    if not _only_renaming_left(out):
        check_disk(plan.parts, out.parent)
    prepare(set(plan.resolved.types.values()))  # loads the libraries, so that the budget knows what they take
    budget = memory_budget(memory)
    check_budget(plan.items, budget)
    journal = Journal(out.with_name(out.name + ".journal"), plan.identity, restart=force)
    finished = False
    try:
        resumed = _resume(plan, journal, out, force)
        _write_items(plan, journal, threads or available_threads(), budget, quiet)
        publish(plan.parts)
        finished = True
    finally:
        journal.close(remove=finished)
    return _result(plan, recipe, time.monotonic() - started, resumed)


def make_plan(
    source: Path, out: Path, recipe: Recipe, split_max_size: int = DEFAULT_SPLIT, imatrix: Path | None = None
) -> Plan:
    """Decide every tensor's type and every byte's place from headers alone; `imatrix` is read and checked as well."""
    checkpoint = open_checkpoint(source)
    model = build_model(checkpoint)
    hparams = model.hparams
    shape = ModelShape(
        hparams.n_layers, hparams.n_experts, hparams.n_heads, hparams.n_kv_heads, has_imatrix=imatrix is not None
    )
    resolved = resolve_types(recipe, {tensor.gguf: tensor.shape for tensor in model.tensors}, shape)
    for tensor in model.tensors:
        check_row_length(tensor.gguf, resolved.types[tensor.gguf], tensor.shape[-1])
    mix = mix_by_name(recipe.base)
    importance = importance_for(imatrix, model, mix, resolved.types)
    specs = [TensorSpec(tensor.gguf, resolved.types[tensor.gguf], tensor.shape) for tensor in model.tensors]
    pairs = [
        *general_pairs(model, source, mix.file_type),
        *sampling_pairs(source),
        *architecture_pairs(model),
        *tokenizer_pairs(source, hparams.vocab, minimax_m2.GGUF_TOKENIZER_PRE),
        *_provenance(checkpoint, recipe, resolved),
        *importance_pairs(importance),
    ]
    parts = lay_out(out, model.architecture, pairs, specs, split_max_size)
    protect_source(source, parts)
    items = plan_items(checkpoint, model, resolved.types, parts)
    return Plan(checkpoint, model, resolved, importance, parts, items, _identity(checkpoint, recipe, parts))


def refuse_existing(parts: list[Part], out: Path, force: bool) -> None:
    """Raise BadInput when a final name is taken and the run may not replace it."""
    if force or _only_renaming_left(out):
        return
    for part in parts:
        if part.path.exists():
            raise BadInput(f"{part.path}: output exists; choose another name or replace it with --force")


def _only_renaming_left(out: Path) -> bool:
    """Whether an earlier run was stopped after its last item, so that its files may have their final names."""
    journal = out.with_name(out.name + ".journal")
    return journal.exists() and f"\n{COMPLETE}\n" in journal.read_text(errors="replace")


def _provenance(checkpoint: Checkpoint, recipe: Recipe, resolved: Resolved) -> list[Pair]:
    changes = [f"{change.tensor}: {change.before} -> {change.after}" for change in resolved.overflow_changes]
    return [
        string("general.quantized_by", f"quantkit {__version__}"),
        string("quantkit.version", __version__),
        string("quantkit.quantizer", library_version()),
        string("quantkit.mix", recipe.base),
        string("quantkit.recipe", recipe.model_dump_json()),
        string("quantkit.source.layout_sha256", checkpoint.layout_hash()),
        boolean("quantkit.overflow_guard", recipe.overflow_guard),
        array("quantkit.overflow_guard.changes", changes),
    ]


def _identity(checkpoint: Checkpoint, recipe: Recipe, parts: list[Part]) -> RunIdentity:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(os.fsencode(part.path.name) + b"\0" + part.header)
    return RunIdentity(digest.hexdigest(), checkpoint.shard_marks(), f"{recipe.base} of {checkpoint.folder}")


def _resume(plan: Plan, journal: Journal, out: Path, force: bool) -> int:
    """Settle what an earlier run's journal says against the files; return how many items are done."""
    partial_there = all(_has_size(partial_path(part.path), part) for part in plan.parts)
    if journal.complete and all(
        _has_size(partial_path(part.path), part) or _has_size(part.path, part) for part in plan.parts
    ):
        return len(plan.items)
    journal.complete = False
    journal.done &= {item.number for item in plan.items}
    refuse_existing(plan.parts, out, force)
    changed = {item.number for item in plan.items if _shards(plan, item) & journal.changed}
    # Without the whole partial output (somebody removed it) the journal's items are gone as well.
    lost = journal.done & changed if partial_there else set(journal.done)
    if lost or journal.changed:
        journal.forget(lost)
    return len(journal.done)


def _has_size(path: Path, part: Part) -> bool:
    return path.is_file() and path.stat().st_size == part.size


def _shards(plan: Plan, item: Item) -> set[str]:
    # A weight and its scale may sit in different shards.
    names = (name for name in (item.source, item.scale) if name is not None)
    return {plan.checkpoint.shard_name(plan.checkpoint.tensors[name].path) for name in names}


def _write_items(plan: Plan, journal: Journal, threads: int, budget: int, quiet: bool) -> None:
    if journal.complete:
        return
    missing = [item for item in plan.items if item.number not in journal.done]
    total = sum(item.weights for item in plan.items)
    resumed = total - sum(item.weights for item in missing)
    with (
        Reader(plan.checkpoint, plan.model.block) as reader,
        OutputFiles(plan.parts) as output,
        WeightProgress("quantizing", total, resumed, quiet=quiet) as progress,
    ):

        def work(item: Item) -> None:
            output.write(item.part, item.offset, _quantize(plan, reader, item))
            journal.record(item.number, output.sync)
            entry = plan.checkpoint.tensors[item.source]
            progress.advance(item.weights, entry.nbytes * item.weights // math.prod(entry.shape))

        try:
            run_items(missing, work, threads, budget)
        finally:
            journal.flush(output.sync)
        output.sync()
    journal.mark_complete()


def _quantize(plan: Plan, reader: Reader, item: Item) -> Any:
    entry = plan.checkpoint.tensors[item.source]
    rows = (item.first, item.last) if len(entry.shape) > 1 else None
    weights = reader.read_rows(item.source, item.scale, rows).reshape(-1, item.row_length)
    importance = plan.importance.weights(item.tensor, item.matrix) if plan.importance is not None else None
    try:
        return quantize_rows(weights, item.type, importance)
    except NotRepresentable as error:
        raise BadInput(
            f"{entry.path}: tensor {item.source}: {error}; choose another type for {item.tensor} with --tensor-type"
        ) from None


def _result(plan: Plan, recipe: Recipe, seconds: float, resumed: int) -> GGUFResult:
    return GGUFResult(
        outputs=tuple(part.path for part in plan.parts),
        mix=recipe.base,
        weights=sum(item.weights for item in plan.items),
        source_bytes=sum(entry.nbytes for entry in plan.checkpoint.tensors.values()),
        output_bytes=sum(part.size for part in plan.parts),
        tensor_bytes=sum(tensor_bytes(plan.resolved.types[tensor.gguf], tensor.shape) for tensor in plan.model.tensors),
        seconds=seconds,
        peak_rss=peak_resident(),
        items=len(plan.items),
        resumed_items=resumed,
        types=dict(Counter(plan.resolved.types.values())),
        overflow_changes=plan.resolved.overflow_changes,
        importance=plan.importance,
        ignored=plan.model.ignored,
    )

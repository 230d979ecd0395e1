"""FP8 or BF16 shards to GGUFs in one pass: open, resolve types, lay out, quantize straight into place, publish."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantkit.checkpoint.reader import Reader
from quantkit.files import partial_path
from quantkit.quantize.rows import prepare
from quantkit.recipe.recipe import Recipe
from quantkit.run.gguf.executor import check_budget, run_items
from quantkit.run.gguf.items import Item
from quantkit.run.gguf.plan import DEFAULT_SPLIT, Plan, Target, make_plan, refuse_existing
from quantkit.run.gguf.quantize_item import quantize_item
from quantkit.run.gguf.result import GGUFResult, result_of
from quantkit.run.journal import COMPLETE, Journal
from quantkit.run.output import OutputFiles, check_disk, check_folder, holds_part, publish
from quantkit.run.progress import WeightProgress
from quantkit.run.sizes import available_threads, memory_budget


def write_gguf(source: Path, out: Path, recipe: Recipe, **options: Any) -> GGUFResult:
    """Quantize the checkpoint in `source` to the GGUF `out` (or its split parts); `options` as of `write_ggufs`."""
    (result,) = write_ggufs(source, [Target(out, recipe)], **options)
    return result


def write_ggufs(
    source: Path,
    targets: Sequence[Target],
    *,
    imatrix: Path | None = None,
    split_max_size: int = DEFAULT_SPLIT,
    threads: int | None = None,
    memory: int | None = None,
    force: bool = False,
    quiet: bool = False,
) -> list[GGUFResult]:
    """Quantize the checkpoint in `source` to the GGUFs `targets`, all in one folder, in one pass.

    `imatrix` is an importance matrix of this model, GGUF or `.dat`; `memory` bounds the whole process in bytes. A rerun
    after an interruption does only what is missing and ends in the same bytes. Raises BadInput before anything is
    written when source, recipe, importance matrix, memory or disk cannot do it.
    """
    started = time.monotonic()
    for target in targets:
        check_folder(target.path)
    journal_path = targets[0].path.with_name(targets[0].path.name + ".journal")
    plan = make_plan(source, targets, split_max_size, imatrix)
    going_on = _only_renaming_left(journal_path)
    if not force and not going_on:
        refuse_existing(plan.parts)
    if not going_on:
        check_disk(plan.parts, journal_path.parent)
    # Loads the libraries, so that the budget knows what they take.
    prepare({type_name for output in plan.outputs for type_name in output.types.values()})
    budget = memory_budget(memory)
    check_budget(plan.items, budget)
    journal = Journal(journal_path, plan.identity, restart=force)
    finished = False
    try:
        resumed = _resume(plan, journal, force)
        _write_items(plan, journal, threads or available_threads(), budget, quiet)
        publish(plan.parts)
        finished = True
    finally:
        journal.close(remove=finished)
    seconds = time.monotonic() - started
    return [result_of(plan, output, seconds, resumed) for output in plan.outputs]


def _only_renaming_left(journal: Path) -> bool:
    """Whether an earlier run was stopped after its last item, so that its files may have their final names."""
    return journal.exists() and f"\n{COMPLETE}\n" in journal.read_text(errors="replace")


def _resume(plan: Plan, journal: Journal, force: bool) -> int:
    """Settle what an earlier run's journal says against the files; return how many items are done."""
    partial_there = all(holds_part(partial_path(part.path), part) for part in plan.parts)
    if journal.complete and all(
        holds_part(partial_path(part.path), part) or holds_part(part.path, part) for part in plan.parts
    ):
        return len(plan.items)
    journal.complete = False
    journal.done &= {item.number for item in plan.items}
    if not force and not _only_renaming_left(journal.path):
        refuse_existing(plan.parts)
    changed = {item.number for item in plan.items if _shards(plan, item) & journal.changed}
    # Without the whole partial output (somebody removed it) the journal's items are gone as well.
    lost = journal.done & changed if partial_there else set(journal.done)
    if lost or journal.changed:
        journal.forget(lost)
    return len(journal.done)


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
            output.write(item.part, item.offset, quantize_item(plan, reader, item))
            journal.record(item.number, output.sync)
            progress.advance(item.weights, plan.stored_bytes(item))

        try:
            run_items(missing, work, threads, budget)
        finally:
            journal.flush(output.sync)
        output.sync()
    journal.mark_complete()

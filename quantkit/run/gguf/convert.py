"""FP8 or BF16 shards to GGUFs in one pass: open, resolve types, lay out, quantize straight into place, publish."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from quantkit.arrays import Bytes
from quantkit.checkpoint.reader import Reader
from quantkit.files import partial_path
from quantkit.quantize.rows import OWN, prepare
from quantkit.recipe.recipe import Recipe
from quantkit.run.finished import FinishedFiles
from quantkit.run.gguf.executor import check_budget, run_items
from quantkit.run.gguf.items import Item
from quantkit.run.gguf.plan import DEFAULT_SPLIT, Plan, Target, make_plan, refuse_existing
from quantkit.run.gguf.quantize_item import announce, quantize_item
from quantkit.run.gguf.result import GGUFResult, result_of
from quantkit.run.journal import COMPLETE, Journal
from quantkit.run.output import OutputFiles, check_disk, check_folder, holds_part, publish
from quantkit.run.progress import WeightProgress
from quantkit.run.sizes import available_threads, memory_budget

if TYPE_CHECKING:  # only cards need it
    import torch


def write_gguf(source: Path, out: Path, recipe: Recipe, **options: Any) -> GGUFResult:
    """Quantize the checkpoint in `source` to the GGUF `out` (or its split parts); `options` as of `write_ggufs`."""
    (result,) = write_ggufs(source, [Target(out, recipe)], **options)
    return result


def write_ggufs(
    source: Path,
    targets: Sequence[Target],
    *,
    imatrix: Path | None = None,
    kquants: str = OWN,
    device: torch.device | None = None,
    split_max_size: int = DEFAULT_SPLIT,
    threads: int | None = None,
    memory: int | None = None,
    force: bool = False,
    quiet: bool = False,
    finished: FinishedFiles | None = None,
) -> list[GGUFResult]:
    """Quantize the checkpoint in `source` to the GGUFs `targets`, all in one folder, in one pass.

    `imatrix` is an importance matrix of this model, GGUF or `.dat`; `kquants` says whose search makes k-quants, `own`
    or `ggml`, and `device` where, None being the CPU; `memory` bounds the whole process in bytes. A rerun
    after an interruption does only what is missing and ends in the same bytes. With `finished` every part goes there
    once it is complete. Raises BadInput before anything is written when source, recipe, importance matrix, memory or
    disk cannot do it.
    """
    started = time.monotonic()
    for target in targets:
        check_folder(target.path)
    journal_path = targets[0].path.with_name(targets[0].path.name + ".journal")
    plan = make_plan(source, targets, split_max_size, imatrix, kquants=kquants, device=device)
    if finished is not None:
        finished.begin(plan.parts, plan.identity.digest(), restart=force)
    going_on = _only_renaming_left(journal_path)
    if not force and not going_on:
        refuse_existing(plan.parts)
    if not going_on:
        check_disk(plan.parts, journal_path.parent, taken=finished is not None)
    # Loads the libraries, so that the budget knows what they take.
    prepare({type_name for output in plan.outputs for type_name in output.types.values()}, kquants)
    budget = memory_budget(memory)
    check_budget(plan.items, budget)
    journal = Journal(journal_path, plan.identity, restart=force)
    ended = False
    try:
        resumed = _resume(plan, journal, force, finished)
        _write_items(plan, journal, device, threads or available_threads(), budget, quiet, finished)
        if finished is None:
            publish(plan.parts)
        else:
            finished.complete(plan.parts, [])
        ended = True
    finally:
        journal.close(remove=ended)
    seconds = time.monotonic() - started
    return [result_of(plan, output, seconds, resumed) for output in plan.outputs]


def _only_renaming_left(journal: Path) -> bool:
    """Whether an earlier run was stopped after its last item, so that its files may have their final names."""
    return journal.exists() and f"\n{COMPLETE}\n" in journal.read_text(errors="replace")


def _resume(plan: Plan, journal: Journal, force: bool, finished: FinishedFiles | None) -> int:
    """Settle what an earlier run's journal says against the files; return how many items are done."""
    # Who takes finished files may have been stopped before the last of them: those are completed once more.
    renaming_left = journal.complete and finished is None
    if renaming_left and all(
        holds_part(partial_path(part.path), part) or holds_part(part.path, part) for part in plan.parts
    ):
        return len(plan.items)
    held = {number for number, part in enumerate(plan.parts) if finished is not None and finished.held(part.path)}
    journal.complete = False
    journal.done &= {item.number for item in plan.items}
    if not force and not _only_renaming_left(journal.path):
        refuse_existing(plan.parts)
    changed = {item.number for item in plan.items if _shards(plan, item) & journal.changed}
    # Without its partial file (somebody removed it) a part's items are gone as well.
    absent = {number for number, part in enumerate(plan.parts) if not holds_part(partial_path(part.path), part)}
    lost = journal.done & (changed | {item.number for item in plan.items if item.part in absent - held})
    if lost or journal.changed:
        journal.forget(lost)
    journal.done |= {item.number for item in plan.items if item.part in held}
    return len(journal.done)


def _shards(plan: Plan, item: Item) -> set[str]:
    # A weight and its scale may sit in different shards.
    names = (name for name in (item.source, item.scale) if name is not None)
    return {plan.checkpoint.shard_name(plan.checkpoint.tensors[name].path) for name in names}


def _quantizer(
    plan: Plan, reader: Reader, device: torch.device | None
) -> Callable[[Item, Callable[[Bytes], None]], None]:
    """What quantizes an item on `device` and gives its bytes to the function beside it, which uses them at once."""
    if device is None:
        return lambda item, write: write(quantize_item(plan, reader, item))
    from quantkit.run.gguf.on_cuda import CardQuantizer  # loads torch

    return CardQuantizer(plan, reader, device)


def _write_items(
    plan: Plan,
    journal: Journal,
    device: torch.device | None,
    threads: int,
    budget: int,
    quiet: bool,
    finished: FinishedFiles | None,
) -> None:
    if journal.complete:
        return
    missing = [item for item in plan.items if item.number not in journal.done]
    total = sum(item.weights for item in plan.items)
    resumed = total - sum(item.weights for item in missing)
    sources, parts = Outstanding(item.source for item in missing), Outstanding(item.part for item in missing)
    with (
        Reader(plan.checkpoint, plan.model.block) as reader,
        OutputFiles(plan.parts, finished) as output,
        WeightProgress("quantizing", total, resumed, quiet=quiet) as progress,
    ):
        reader.expect(dict.fromkeys(name for item in missing for name in (item.source, item.scale)))
        for number in set(range(len(plan.parts))) - {item.part for item in missing}:
            output.complete(number)
        quantize = _quantizer(plan, reader, device)

        def work(item: Item) -> None:
            quantize(item, partial(output.write, item.part, item.offset))
            journal.record(item.number)
            if sources.done(item.source):
                reader.release((item.source, item.scale))
            if parts.done(item.part):
                journal.flush(output.sync)
                output.complete(item.part)
            progress.advance(item.weights, plan.stored_bytes(item))

        with journal.kept_on_disk(output.sync):
            run_items(missing, work, threads, budget, partial(announce, plan, reader))
        output.sync()
    journal.mark_complete()


K = TypeVar("K", bound=Hashable)


class Outstanding(Generic[K]):
    """How many items still belong to each key. Thread-safe."""

    def __init__(self, keys: Iterable[K]) -> None:
        self._left = Counter(keys)
        self._lock = threading.Lock()

    def done(self, key: K) -> bool:
        """One item less; whether it was the key's last one."""
        with self._lock:
            self._left[key] -= 1
            return not self._left[key]

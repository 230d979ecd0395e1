"""The story of a compensated run: plan every byte, quantize layer by layer while tokens pass, publish."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from quantkit import __version__
from quantkit.calibration.coverage import layer_coverage
from quantkit.calibration.layer_store import LayerStore, unfinished_run
from quantkit.errors import BadInput
from quantkit.files import partial_path
from quantkit.forward.streamed import StreamedForward
from quantkit.forward.weights import Weights
from quantkit.quantize.ggml_blocks import dequantize
from quantkit.quantize.kquants.rows import NotRepresentable, Rows
from quantkit.quantize.rows import OWN, prepare, quantize_rows
from quantkit.run.calibrated.forward import bring_to, open_forward
from quantkit.run.calibrated.tokens import Excluded
from quantkit.run.finished import FinishedFiles
from quantkit.run.gguf.calibration import Calibration, measured_tensors
from quantkit.run.gguf.executor import run_items
from quantkit.run.gguf.files import SolvedFiles
from quantkit.run.gguf.head import compensate_head
from quantkit.run.gguf.items import Item
from quantkit.run.gguf.layers import LayerCompensator, solver_bytes
from quantkit.run.gguf.matrices import MatrixSolver
from quantkit.run.gguf.plan import DEFAULT_SPLIT, Plan, Target, make_plan, refuse_existing
from quantkit.run.gguf.quantize_item import quantize_item
from quantkit.run.gguf.report import report_path, run_report, write_report
from quantkit.run.gguf.result import GGUFResult, result_of
from quantkit.run.output import OutputFiles, check_disk, check_folder, holds_part, publish
from quantkit.run.progress import WeightProgress
from quantkit.run.sizes import available_threads

EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class CompensatedFile:
    """A GGUF that a run wrote, and the `report` beside it with its `content`."""

    gguf: GGUFResult
    report: Path
    content: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class CompensatedResult:
    """What a run wrote and saw; `excluded` counts tokens by (layer, expert or None) where they became not finite."""

    files: tuple[CompensatedFile, ...]
    tokens: int
    precision: str
    excluded: Excluded
    resumed_layers: int


def write_compensated(
    source: Path,
    targets: Sequence[Target],
    calibration: Calibration,
    *,
    kquants: str = OWN,
    split_max_size: int = DEFAULT_SPLIT,
    threads: int | None = None,
    memory: int | None = None,
    force: bool = False,
    quiet: bool = False,
    finished: FinishedFiles | None = None,
) -> CompensatedResult:
    """Quantize the checkpoint in `source` to the GGUFs `targets`, integers chosen with error feedback.

    The outputs share one pass over the source, in which the first one's weights flow from layer to layer. A rerun after
    an interruption goes on at the layer that was not finished and ends in the same bytes. With `finished` every part
    goes there once its layers are done. Raises BadInput before anything is written when source, recipes, tokens, memory
    or disk cannot do it.
    """
    started = time.monotonic()
    store_folder = targets[0].path.with_name(targets[0].path.name + ".layers")
    plan = _checked_plan(
        source, targets, calibration, kquants, split_max_size, force, unfinished_run(store_folder), finished
    )
    identity = _identity(plan, calibration)
    if finished is not None:
        finished.begin(plan.parts, json.dumps(identity, sort_keys=True), restart=force)
    layers = plan.model.hparams.n_layers
    with open_forward(
        plan.checkpoint,
        plan.model,
        calibration.tokens,
        device=calibration.device,
        precision=calibration.precision,
        memory=memory,
        threads=threads or available_threads(),
        # A worker is at an expert, or at rows of another matrix.
        solver=max(solver_bytes(plan.model.hparams, len(plan.outputs)), _largest(plan.items)),
        scratch=store_folder.resolve().parent,
    ) as (weights, forward):
        # One layer more than the model has: the output matrix.
        store = LayerStore(store_folder, layers + 1, identity, restart=force)
        ended = False
        try:
            resumed = _run(plan, calibration, weights, forward, store, quiet, finished)
            excluded = dict(forward.states.excluded)
            reports = _write_reports(plan, calibration, store, excluded)
            if finished is None:
                publish(plan.parts)
            else:
                finished.complete(plan.parts, [report_path(output.path) for output in plan.outputs])
            ended = True
        finally:
            store.close(remove=ended)
    seconds = time.monotonic() - started
    return CompensatedResult(
        files=tuple(
            CompensatedFile(result_of(plan, output, seconds, 0), report_path(output.path), content)
            for output, content in zip(plan.outputs, reports, strict=True)
        ),
        tokens=len(calibration.tokens.ids),
        precision=calibration.resolved_precision(plan.model.hparams),
        excluded=excluded,
        resumed_layers=min(resumed, layers),
    )


def _checked_plan(
    source: Path,
    targets: Sequence[Target],
    calibration: Calibration,
    kquants: str,
    split_max_size: int,
    force: bool,
    going_on: bool,
    finished: FinishedFiles | None,
) -> Plan:
    """Plan the outputs and see that they can be written. Loads the quantizers, so that memory can be counted."""
    for target in targets:
        check_folder(target.path)
    plan = make_plan(source, targets, split_max_size, calibration=calibration, kquants=kquants)
    if not force and not going_on:
        _refuse_existing(plan)
    if not going_on:
        states = 2 * len(calibration.tokens.ids) * plan.model.hparams.hidden * 4  # those behind two layers
        check_disk(plan.parts, targets[0].path.parent, states, taken=finished is not None)
    prepare({kind for output in plan.outputs for kind in output.types.values()}, kquants)
    return plan


def _refuse_existing(plan: Plan) -> None:
    refuse_existing(plan.parts)
    for output in plan.outputs:
        if report_path(output.path).exists():
            raise BadInput(f"{report_path(output.path)}: output exists; choose another name or replace it with --force")


def _identity(plan: Plan, calibration: Calibration) -> dict[str, Any]:
    """What has to be the same for a rerun to go on. Arguments and tokens are in the headers."""
    return {
        "version": __version__,
        "source": plan.checkpoint.shard_marks() | {"config.json": plan.checkpoint.layout_hash()},
        "arguments": plan.identity.output,
        "tokens": calibration.tokens.sha256(),
    }


def _run(
    plan: Plan,
    calibration: Calibration,
    weights: Weights,
    forward: StreamedForward,
    store: LayerStore,
    quiet: bool,
    finished: FinishedFiles | None,
) -> int:
    """Do all that the store does not have; return how many layers it had, the output matrix counted as one."""
    h, resumed = plan.model.hparams, store.finished()
    bring_to(forward, store, resumed, partial(_embedding_as_stored, plan))
    _settle_partial(plan, resumed, finished)
    if resumed > h.n_layers and finished is None:
        return resumed
    per_expert = 3 * h.hidden * h.expert_width
    per_layer = h.n_experts * per_expert
    stages = plan.model.stages()
    with (
        OutputFiles(plan.parts, finished) as files,
        WeightProgress("quantizing", h.n_layers * per_layer, min(resumed, h.n_layers) * per_layer, quiet=quiet) as bar,
    ):
        files.complete_through(resumed - 1, stages)
        solver = MatrixSolver(weights, SolvedFiles(plan, files))
        # One stage before the layers, and one behind them.
        for stage in range(resumed or -1, h.n_layers + 1):
            _write_unmeasured(plan, stage, weights, files, forward.room.workers)
            if stage < 0:
                continue
            if stage < h.n_layers:
                compensator = LayerCompensator(solver, stage, forward.room.workers)
                routing = forward.layer(
                    stage, (), calibration.min_tokens, lambda expert: bar.advance(per_expert, per_expert), compensator
                )
                coverage = layer_coverage(routing)
                arrays = compensator.take_records() | {"routed": coverage.routed, "topped_up": coverage.topped_up}
            else:
                arrays = compensate_head(solver, forward.states, forward.room.workers)
            files.sync()
            store.save(stage, arrays, forward.states)
            files.complete_through(stage, stages)
    return resumed


def _write_reports(plan: Plan, calibration: Calibration, store: LayerStore, excluded: Excluded) -> list[dict[str, Any]]:
    layers = plan.model.hparams.n_layers
    arrays, head = [store.load(layer) for layer in range(layers)], store.load(layers)
    reports = []
    for number, output in enumerate(plan.outputs):
        reports.append(run_report(plan, calibration, number, arrays, head, excluded))
        write_report(output.path, reports[-1])
    return reports


def _settle_partial(plan: Plan, resumed: int, finished: FinishedFiles | None) -> None:
    """See that what an interrupted run has filled is still there; begin with new files where nothing counts."""
    everything, stages = resumed > plan.model.hparams.n_layers, plan.model.stages()
    for part in plan.parts:
        path = partial_path(part.path)
        if not resumed:
            path.unlink(missing_ok=True)
        elif finished is not None and finished.held(part.path):
            continue
        elif finished is not None and all(stages[name] >= resumed for name in part.offsets):
            continue  # not begun: such files are created when something is written
        elif not holds_part(path, part) and not (everything and holds_part(part.path, part)):
            raise BadInput(f"{path}: was removed or changed since the run was interrupted; start over with --force")


def _embedding_as_stored(plan: Plan, rows: torch.Tensor) -> torch.Tensor:
    """What the first output gives for rows [V, H] of the embedding: its error is there from the first layer on."""
    kind = plan.outputs[0].types[EMBEDDING]
    try:
        packed = quantize_rows(Rows(rows.cpu().numpy()), kind, None, plan.kquants)
    except NotRepresentable:  # is said with the tensor's name when it is written
        return rows
    return torch.from_numpy(dequantize(packed, kind, rows.shape[1])).to(rows.device, rows.dtype)


def _write_unmeasured(plan: Plan, stage: int, weights: Weights, files: OutputFiles, workers: int) -> None:
    """Write the tensors of a stage that no calibration decides about: norms, routers, embeddings."""
    measured, stages = {tensor.gguf for tensor in measured_tensors(plan.model)}, plan.model.stages()
    items = [item for item in plan.items if item.tensor not in measured and stages[item.tensor] == stage]
    if not items:
        return

    def work(item: Item) -> None:
        files.write(item.part, item.offset, quantize_item(plan, weights.reader, item))

    run_items(items, work, workers, workers * _largest(items))


def _largest(items: Sequence[Item]) -> int:
    """Bytes that one item holds at most."""
    return max(item.memory for item in items)

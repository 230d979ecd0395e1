"""The story of an INT4 run: plan every byte, quantize layer by layer in one pass over the source, publish."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.calibration.layer_store import LayerStore, unfinished_run
from quantkit.calibration.tokens import TokenSet
from quantkit.checkpoint.index import open_checkpoint
from quantkit.checkpoint.sidecars import sidecars
from quantkit.files import partial_path
from quantkit.formats.packed import FORMATS
from quantkit.formats.safetensors import lay_out
from quantkit.formats.scheme import Scheme
from quantkit.model.tensors import build_model
from quantkit.run.finished import FinishedFiles
from quantkit.run.int4.contents import Fate, pieces, tensor_specs
from quantkit.run.int4.folder import (
    REPORT_NAME,
    PackedFolder,
    Plan,
    check_out,
    hand_over_folder,
    publish_folder,
    publishing_began,
    refuse_lost_shards,
    store_folder,
)
from quantkit.run.int4.passes import LayerPass, open_pass
from quantkit.run.int4.report import provenance, run_report
from quantkit.run.int4.settings import Int4Settings
from quantkit.run.output import check_disk
from quantkit.run.progress import WeightProgress
from quantkit.run.sizes import peak_resident


@dataclass(frozen=True)
class Int4Result:
    """What a run wrote and saw.

    `weights` counts the quantized ones, `bits_per_weight` theirs with scales and zeros; `relative_error` is the output
    error of the quantized matrices over that of plain rounding, NaN where nothing was calibrated; `fallbacks` counts
    what had to be done otherwise; `excluded` counts tokens by (layer, expert or None) where they became not finite.
    """

    output: Path
    report: Path
    method: str
    format: str
    bits: int
    group_size: int
    weights: int
    output_bytes: int
    shards: int
    bits_per_weight: float
    tokens: int
    tokens_sha256: str | None
    precision: str | None
    seconds: float
    peak_rss: int
    resumed_layers: int
    fallbacks: dict[str, int]
    coverage: dict[str, Any] | None = field(repr=False)
    excluded: dict[tuple[int, int | None], int]
    relative_error: float


def quantize_int4(
    source: Path,
    out: Path,
    settings: Int4Settings,
    tokens: TokenSet | None,
    *,
    device: str = "cpu",
    precision: str = "auto",
    memory: int | None = None,
    force: bool = False,
    quiet: bool = False,
    finished: FinishedFiles | None = None,
) -> Int4Result:
    """Quantize the checkpoint in `source` into the folder `out`; all methods but RTN need `tokens`.

    A rerun after an interruption goes on at the layer that was not finished and ends in the same bytes. With `finished`
    every shard goes there once its layers are done, and no folder stays. Raises BadInput before anything is written
    when source, settings, memory or disk cannot do it.
    """
    started = time.monotonic()
    store_place = store_folder(out)
    going_on = unfinished_run(store_place)
    check_out(out, source, force=force or going_on)
    plan = make_plan(source, out, settings)
    if not going_on:
        check_disk(plan.shards, out.resolve().parent, _state_bytes(plan, tokens), taken=finished is not None)
    with open_pass(plan, settings, tokens, device, precision, memory) as layer_pass:
        identity = _identity(plan, settings, tokens, layer_pass.precision)
        if finished is not None:
            finished.begin(plan.shards, json.dumps(identity, sort_keys=True), restart=force)
        store = LayerStore(
            store_place, plan.model.hparams.n_layers, identity, restart=force, with_states=tokens is not None
        )
        ended = False
        try:
            resumed = _run(plan, layer_pass, store, quiet, finished)
            arrays = [store.load(layer) for layer in range(plan.model.hparams.n_layers)]
            report = run_report(plan, settings, tokens, layer_pass, arrays)
            if finished is None:
                publish_folder(plan, report)
            else:
                hand_over_folder(plan, report, finished)
            ended = True
        finally:
            store.close(remove=ended)
    return _result(plan, settings, tokens, report, layer_pass, time.monotonic() - started, resumed)


def make_plan(source: Path, out: Path, settings: Int4Settings) -> Plan:
    """Decide what becomes of every tensor and where its bytes go, from headers alone."""
    checkpoint = open_checkpoint(source)
    model = build_model(checkpoint)
    scheme = Scheme(settings.grid, settings.attention, settings.kept_layers, model.block, provenance(settings))
    packed = FORMATS[settings.format]
    sidecars(source)  # whether they are all there is better known now than after the last layer
    everything = list(pieces(model, scheme, settings.method))
    specs = [spec for piece in everything for spec in tensor_specs(piece, checkpoint, scheme, packed)]
    shards = lay_out(partial_path(out), specs)
    return Plan(out, checkpoint, model, scheme, packed, everything, specs, shards)


def _state_bytes(plan: Plan, tokens: TokenSet | None) -> int:
    """What the tokens' states take on disk at most: those behind two layers."""
    return 2 * len(tokens.ids) * plan.model.hparams.hidden * 4 if tokens is not None else 0


def _identity(plan: Plan, settings: Int4Settings, tokens: TokenSet | None, precision: str | None) -> dict[str, Any]:
    """What has to be the same for a rerun to go on."""
    digest = hashlib.sha256(b"".join(shard.header for shard in plan.shards))
    return {
        "version": __version__,
        "source": plan.checkpoint.shard_marks() | {"config.json": plan.checkpoint.layout_hash()},
        "arguments": json.loads(json.dumps(asdict(settings))),
        "layout": digest.hexdigest(),
        "tokens": tokens.sha256() if tokens is not None else None,
        "precision": precision,
    }


def _run(plan: Plan, layer_pass: LayerPass, store: LayerStore, quiet: bool, finished: FinishedFiles | None) -> int:
    """Run every layer that the store does not have; return how many it had."""
    h = plan.model.hparams
    resumed = store.finished()
    layer_pass.start(store, resumed)
    if resumed == h.n_layers and finished is None and publishing_began(plan):
        return resumed
    if resumed:
        refuse_lost_shards(plan, resumed, finished)
    else:  # whatever an earlier run has left there, perhaps with other shards
        shutil.rmtree(partial_path(plan.out), ignore_errors=True)
    per_expert = 3 * h.hidden * h.expert_width
    per_layer = h.n_experts * per_expert
    stages = plan.stages()
    with (
        PackedFolder(plan, layer_pass.reader, finished) as folder,
        WeightProgress("quantizing", h.n_layers * per_layer, resumed * per_layer, quiet=quiet) as progress,
    ):
        folder.files.complete_through(resumed - 1, stages)
        # One stage before the layers, and one behind them.
        for stage in range(resumed or -1, h.n_layers + 1):
            for piece in plan.pieces_of(stage):
                folder.write_unquantized(piece)
            if 0 <= stage < h.n_layers:
                arrays = layer_pass.layer(stage, folder, lambda expert: progress.advance(per_expert, per_expert))
                folder.files.sync()
                store.save(stage, arrays, layer_pass.states)
            layer_pass.reader.release(plan.sources_of(stage))
            if stage >= 0:
                folder.files.complete_through(stage, stages)
        folder.files.sync()
    return resumed


def _result(
    plan: Plan,
    settings: Int4Settings,
    tokens: TokenSet | None,
    report: dict[str, Any],
    layer_pass: LayerPass,
    seconds: float,
    resumed: int,
) -> Int4Result:
    quantized = [piece for piece in plan.pieces if piece.fate is Fate.PACKED]
    weights = sum(math.prod(piece.tensor.source_shape) for piece in quantized)
    nbytes = {spec.name: spec.nbytes for spec in plan.specs}
    packed = sum(
        nbytes[spec.name]
        for piece in quantized
        for spec in tensor_specs(piece, plan.checkpoint, plan.scheme, plan.packed)
    )
    return Int4Result(
        output=plan.out,
        report=plan.out / REPORT_NAME,
        method=str(settings.method),
        format=settings.format,
        bits=settings.grid.bits,
        group_size=settings.grid.group_size,
        weights=weights,
        output_bytes=sum(shard.size for shard in plan.shards),
        shards=len(plan.shards),
        bits_per_weight=packed * 8 / weights if weights else 0.0,
        tokens=len(tokens.ids) if tokens is not None else 0,
        tokens_sha256=tokens.sha256() if tokens is not None else None,
        precision=layer_pass.precision,
        seconds=seconds,
        peak_rss=peak_resident(),
        resumed_layers=resumed,
        fallbacks=report["fallbacks"],
        coverage=report["coverage"],
        excluded=layer_pass.excluded,
        relative_error=report["relative_error"] if report["relative_error"] is not None else math.nan,
    )

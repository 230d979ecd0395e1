"""Calibration tokens to an importance matrix and a coverage report: tokens, layers, statistics, files."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quantkit import __version__
from quantkit.calibration.coverage import LayerCoverage, coverage_report, layer_coverage
from quantkit.calibration.extremes import ActivationExtremes, overflow_risks
from quantkit.calibration.heatmap import draw_heatmap
from quantkit.calibration.layer_store import Arrays, LayerStore, unfinished_run
from quantkit.calibration.sums import SquareSums
from quantkit.calibration.tokens import TokenSet
from quantkit.checkpoint.index import Checkpoint, open_checkpoint
from quantkit.errors import BadInput
from quantkit.files import write_aside
from quantkit.formats.gguf.metadata import Pair, string
from quantkit.formats.imatrix.write import ImatrixEntry, write_imatrix
from quantkit.forward.documents import Documents
from quantkit.forward.embedding import embed
from quantkit.forward.precision import find_device, find_dtype
from quantkit.forward.statistics import Site
from quantkit.forward.streamed import StreamedForward, plan_room
from quantkit.forward.weights import Weights
from quantkit.model import minimax_m2
from quantkit.model.spec import Model
from quantkit.model.tensors import build_model
from quantkit.run.calibrated.tokens import calibration_pairs
from quantkit.run.output import check_folder
from quantkit.run.progress import WeightProgress
from quantkit.run.sizes import available_threads, memory_budget, peak_resident

REPORT, PICTURE = ".coverage.json", ".coverage.png"


@dataclass(frozen=True)
class ImatrixResult:
    """What a run wrote and saw; `excluded` counts tokens by (layer, expert or None) where they became not finite."""

    output: Path
    report: Path
    picture: Path
    tokens: int
    documents: int
    tokens_sha256: str
    precision: str
    seconds: float
    peak_rss: int
    resumed_layers: int
    coverage: dict[str, Any] = field(repr=False)
    overflow_risks: list[dict[str, Any]]
    excluded: dict[tuple[int, int | None], int]
    calibration: dict[str, Any] = field(repr=False)


def make_imatrix(
    source: Path,
    out: Path,
    tokens: TokenSet,
    *,
    min_tokens: int = 256,
    device: str = "cpu",
    precision: str = "auto",
    memory: int | None = None,
    force: bool = False,
    quiet: bool = False,
) -> ImatrixResult:
    """Run `tokens` through the checkpoint in `source` and write the importance matrix `out`.

    Beside it go `OUT.coverage.json` and `OUT.coverage.png` (without the output's suffix). Every expert's statistics see
    at least `min_tokens` tokens as far as there are any; only what the router chose propagates. A rerun after an
    interruption goes on at the layer that was not finished.
    """
    started = time.monotonic()
    check_folder(out)
    layers = out.with_name(out.name + ".layers")
    _check_outputs(source, out, replace=force or unfinished_run(layers))
    checkpoint = open_checkpoint(source)
    model = build_model(checkpoint)
    documents = Documents(tokens.ids, tokens.starts)
    where = find_device(device)
    dtype = find_dtype(precision, model.hparams, documents.tokens, where)
    room = plan_room(model.hparams, documents, dtype, available_threads(), memory_budget(memory))
    run = _Run(out, checkpoint, model, tokens, min_tokens, str(dtype).removeprefix("torch."))
    store = LayerStore(layers, model.hparams.n_layers, run.identity(), restart=force)
    finished = False
    try:
        with (
            Weights(checkpoint, model, dtype, where) as weights,
            StreamedForward(weights, documents, room, store.folder) as forward,
        ):
            resumed = _run_layers(forward, model, store, min_tokens, quiet)
            excluded = forward.states.excluded
        _write_imatrix(run, store)
        coverage, risks = _write_report(run, store, excluded)
        finished = True
    finally:
        store.close(remove=finished)
    return ImatrixResult(
        output=out,
        report=beside(out, REPORT),
        picture=beside(out, PICTURE),
        tokens=documents.tokens,
        documents=len(tokens.starts) - 1,
        tokens_sha256=tokens.sha256(),
        precision=run.precision,
        seconds=time.monotonic() - started,
        peak_rss=peak_resident(),
        resumed_layers=resumed,
        coverage=coverage,
        overflow_risks=risks,
        excluded=dict(excluded),
        calibration=tokens.provenance,
    )


@dataclass(frozen=True)
class _Run:
    """What was asked for, with `precision` resolved."""

    out: Path
    checkpoint: Checkpoint
    model: Model
    tokens: TokenSet
    min_tokens: int
    precision: str

    def identity(self) -> dict[str, Any]:
        """What has to be the same for a rerun to go on."""
        return {
            "version": __version__,
            "source": self.checkpoint.shard_marks() | {"config.json": self.checkpoint.layout_hash()},
            "tokens": self.tokens.sha256(),
            "min-tokens-per-expert": self.min_tokens,
            "precision": self.precision,
        }

    def provenance(self) -> list[Pair]:
        """Keys of the importance matrix that say how it was made."""
        return [
            string("quantkit.version", __version__),
            string("quantkit.source.layout_sha256", self.checkpoint.layout_hash()),
            *calibration_pairs(self.tokens, self.min_tokens, self.precision),
        ]


def beside(out: Path, suffix: str) -> Path:
    """A file next to the importance matrix `out`, named after it."""
    stem = out.stem if out.suffix in (".gguf", ".dat") else out.name
    return out.with_name(stem + suffix)


def _check_outputs(source: Path, out: Path, *, replace: bool) -> None:
    """Refuse outputs that cannot be written, that exist, or that are files of the checkpoint."""
    for path in (out, beside(out, REPORT), beside(out, PICTURE)):
        check_folder(path)
        if path.exists() and not replace:
            raise BadInput(f"{path}: output exists; choose another name or replace it with --force")
        if path.exists() and path.suffix != ".gguf" and path.parent.resolve() == source.resolve():
            raise BadInput(f"{path}: belongs to the source; give another name with -o")


def _run_layers(forward: StreamedForward, model: Model, store: LayerStore, min_tokens: int, quiet: bool) -> int:
    """Run every layer that the store does not have; return how many it had."""
    h = model.hparams
    resumed = store.finished()
    if resumed:
        store.restore(resumed - 1, forward.states)
    elif h.n_layers:
        embed(forward.weights, forward.documents, forward.states.residual, forward.room.workers)
    sums = SquareSums(h.n_experts)
    extremes = ActivationExtremes(h.n_experts, h.expert_width)
    per_expert = 3 * h.hidden * h.expert_width
    per_layer = h.n_experts * per_expert
    with WeightProgress("calibrating", h.n_layers * per_layer, resumed * per_layer, quiet=quiet) as progress:
        for layer in range(resumed, h.n_layers):
            routing = forward.layer(
                layer, (sums, extremes), min_tokens, lambda expert: progress.advance(per_expert, per_expert)
            )
            arrays = _layer_arrays(sums, extremes, layer_coverage(routing))
            store.save(layer, arrays, forward.states)
    return resumed


def _layer_arrays(sums: SquareSums, extremes: ActivationExtremes, coverage: LayerCoverage) -> Arrays:
    arrays: Arrays = {"routed": coverage.routed, "topped_up": coverage.topped_up, "extremes": extremes.take()}
    for site, (squares, rows) in sums.take().items():
        arrays |= {f"{site}.sums": squares, f"{site}.rows": rows}
    return arrays


def _write_imatrix(run: _Run, store: LayerStore) -> None:
    weights = {tensor.gguf: tensor for tensor in run.model.tensors if tensor.role.name in minimax_m2.INPUT_SITES}
    entries = [ImatrixEntry(name, tensor.shape[-1], tensor.matrices) for name, tensor in weights.items()]
    loaded: dict[int, Arrays] = {}

    def load(name: str) -> tuple[Any, Any]:
        tensor = weights[name]
        assert tensor.layer is not None
        if tensor.layer not in loaded:
            loaded.clear()  # entries come layer by layer: one is enough
            loaded[tensor.layer] = store.load(tensor.layer)
        site = Site(minimax_m2.INPUT_SITES[tensor.role.name])
        arrays = loaded[tensor.layer]
        if f"{site}.sums" not in arrays:  # every token was excluded before this layer
            return np.zeros((tensor.matrices, tensor.shape[-1]), np.float32), np.zeros(tensor.matrices, np.float32)
        return arrays[f"{site}.sums"], arrays[f"{site}.rows"]

    tokens = run.tokens
    write_imatrix(
        run.out,
        entries,
        load,
        datasets=[str(tokens.provenance.get("corpus", "tokens"))],
        chunk_count=-(-len(tokens.ids) // tokens.sequence_length),
        chunk_size=tokens.sequence_length,
        extra=run.provenance(),
    )


def _write_report(
    run: _Run, store: LayerStore, excluded: Counter[tuple[int, int | None]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write the coverage as JSON and as a picture; return its summary and the overflow risks."""
    coverage, risks = [], []
    for layer in range(run.model.hparams.n_layers):
        arrays = store.load(layer)
        coverage.append(LayerCoverage(arrays["routed"], arrays["topped_up"]))
        risk = overflow_risks(f"blk.{layer}.ffn_down_exps.weight", arrays["extremes"])
        risks += [risk] if risk else []
    summary = coverage_report(coverage, run.min_tokens)
    report = {
        "quantkit": __version__,
        "source_layout_sha256": run.checkpoint.layout_hash(),
        "tokens": len(run.tokens.ids),
        "tokens_sha256": run.tokens.sha256(),
        "calibration": run.tokens.provenance,
        "precision": run.precision,
        "coverage": summary,
        "overflow_risks": risks,
        "excluded_tokens": [
            {"layer": layer, "expert": expert, "tokens": count} for (layer, expert), count in excluded.items()
        ],
    }
    write_aside(beside(run.out, REPORT), [(json.dumps(report, indent=1) + "\n").encode()])
    write_aside(beside(run.out, PICTURE), [draw_heatmap(coverage, run.min_tokens)])
    return summary, risks

"""What `quantkit awq`, `gptq` and `rtn` share: their options, the checks in order, the run, and its result."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.cli import hub
from quantkit.cli.calibration_summary import coverage_as_json, excluded_as_json, print_coverage, print_excluded
from quantkit.cli.calibration_tokens import CalibrationOptions
from quantkit.errors import BadInput

if TYPE_CHECKING:
    from quantkit.calibration.tokens import TokenSet
    from quantkit.run.int4.quantize import Int4Result
    from quantkit.run.int4.settings import Int4Settings

Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="The checkpoint folder to write (default: here, named after the source)."),
]
Bits = Annotated[int, typer.Option(metavar="4|8", help="Bits per weight; awq has 4 only.")]
GroupSize = Annotated[
    int | None,
    typer.Option(metavar="32|64|128|-1", help="Columns that share a scale (default: 128); -1: whole rows, not in awq."),
]
FormatName = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="awq|gptq|compressed-tensors",
        help="Layout of the files (default: awq, gptq; of rtn compressed-tensors).",
    ),
]
AttentionName = Annotated[
    str,
    typer.Option(
        "--attention",
        metavar="bf16|fp8|int4",
        help="How attention is stored: fp8, as in the source, needs compressed-tensors; int4: on the experts' grid.",
    ),
]
Symmetric = Annotated[
    bool | None,
    typer.Option("--symmetric/--asymmetric", help="Without or with zero points, which awq files alone can have."),
]
KeepLayers = Annotated[
    str | None,
    typer.Option(metavar="LAYERS", help="Layers whose experts, not attention, stay BF16: 61, 0,61 or 58-61."),
]
TensorParallel = Annotated[
    int | None, typer.Option("--tp", min=1, help="GPUs that will share every matrix: picks a group size they can.")
]


@dataclass(frozen=True)
class Places:
    """Where a run reads and writes, as the command line says it."""

    source: Path | None
    out: Path | None
    push: str | None
    public: bool
    cache_size: str


def quantize(
    settings: Int4Settings,
    *,
    group_size_given: bool,
    keep_layers: str | None,
    tp: int | None,
    memory: str | None,
    force: bool,
    as_json: bool,
    places: Places,
    calibration: CalibrationOptions | None = None,
    device: str = "cpu",
    precision: str = "auto",
) -> None:
    """Check what was given, cheapest first, then quantize and print the result; without `calibration`, no text is read.

    `keep_layers` takes the place of the settings' own.
    """
    from quantkit.run.int4.quantize import quantize_int4
    from quantkit.run.sizes import parse_size

    memory_bytes = parse_size(memory, "--memory") if memory is not None else None
    with hub.opened(places.source, places.cache_size, quiet=as_json) as source:
        out = places.out or Path(f"{source.resolve().name}-{settings.method.upper()}-INT{settings.grid.bits}")
        settings = _checked(settings, source, out, group_size_given, keep_layers, tp)
        tokens = _tokens(source, out, calibration) if calibration is not None else None
        with hub.pushed(places.push, out, source, public=places.public) as finished:
            result = quantize_int4(
                source,
                out,
                settings,
                tokens,
                device=device,
                precision=precision,
                memory=memory_bytes,
                force=force,
                quiet=as_json,
                finished=finished,
            )
            if finished is None:
                hub.note_source(source, out / hub.SOURCE_RECORD.removeprefix("."))
    if as_json:
        typer.echo(json.dumps(_as_json(result) | (finished.as_json() if finished is not None else {})))
        return
    _print(result)
    if finished is not None:
        finished.print()
        return
    for path in (result.output, result.report):
        typer.echo(path)


def _checked(
    settings: Int4Settings, source: Path, out: Path, group_size_given: bool, keep_layers: str | None, tp: int | None
) -> Int4Settings:
    """The settings as the model wants them; BadInput where they, or the output, cannot be."""
    from quantkit.checkpoint.index import open_checkpoint
    from quantkit.model.tensors import build_model
    from quantkit.run.int4.folder import check_out
    from quantkit.run.int4.settings import check_against_model, parse_layers

    hparams = build_model(open_checkpoint(source)).hparams
    if keep_layers is not None:
        settings = replace(settings, kept_layers=parse_layers(keep_layers, hparams.n_layers))
    settings, lines = check_against_model(settings, hparams, tp, group_size_given)
    for line in lines:
        typer.echo(line, err=True)
    # Whether the output may exist is known only to the run, which perhaps goes on.
    check_out(out, source, force=True)
    return settings


def _tokens(source: Path, out: Path, calibration: CalibrationOptions) -> TokenSet:
    from quantkit.checkpoint.index import open_checkpoint
    from quantkit.model.config import hparams_from_config
    from quantkit.run.calibrated.tokens import check_tokens

    hparams = hparams_from_config(open_checkpoint(source).config, source / "config.json")
    _protect_inputs(out, calibration)
    tokens = calibration.load(source, hparams)
    check_tokens(len(tokens.ids), hparams, calibration.origin)
    return tokens


def _protect_inputs(out: Path, calibration: CalibrationOptions) -> None:
    # --force replaces the whole folder.
    for option, path in calibration.files.items():
        if path is not None and path.exists() and out.resolve() in path.resolve().parents:
            raise BadInput(f"{out}: holds the file of {option}; give another name with -o")


def _as_json(result: Int4Result) -> dict[str, Any]:
    return {
        "output": str(result.output),
        "report": str(result.report),
        "method": result.method,
        "format": result.format,
        "bits": result.bits,
        "group_size": result.group_size,
        "weights": result.weights,
        "bits_per_weight": round(result.bits_per_weight, 4),
        "output_bytes": result.output_bytes,
        "shards": result.shards,
        "tokens": result.tokens,
        "tokens_sha256": result.tokens_sha256,
        "precision": result.precision,
        "relative_error": None if math.isnan(result.relative_error) else result.relative_error,
        "fallbacks": result.fallbacks,
        "coverage": None if result.coverage is None else coverage_as_json(result.coverage),
        "excluded_tokens": excluded_as_json(result.excluded),
        "seconds": round(result.seconds, 3),
        "peak_rss_bytes": result.peak_rss,
        "resumed_layers": result.resumed_layers,
    }


def _print(result: Int4Result) -> None:
    from quantkit.run.sizes import format_size

    if result.resumed_layers:
        typer.echo(f"resumed: {result.resumed_layers} layers were on disk")
    if result.coverage is not None:
        print_coverage(
            f"{result.tokens:,} tokens, {result.precision}",
            result.coverage,
            "w1 and w3 leaned on their layer, w2 was rounded",
        )
    print_excluded(result.excluded)
    for what, count in result.fallbacks.items():
        typer.echo(f"fallback: {what}: {count:,}")
    if not math.isnan(result.relative_error):
        typer.echo(f"output error of the quantized matrices: {result.relative_error:.3f} x that of plain rounding")
    group = "whole rows" if result.group_size < 0 else f"groups of {result.group_size}"
    typer.echo(
        f"{result.method}: {result.weights:,} weights in {result.bits} bits, {group}, {result.format}; "
        f"{format_size(result.output_bytes)} in {result.shards} {'shard' if result.shards == 1 else 'shards'}, "
        f"{result.bits_per_weight:.2f} bits per weight, {result.seconds:.1f} s, "
        f"peak memory {format_size(result.peak_rss)}"
    )

"""What `quantkit awq`, `gptq` and `rtn` share: their options, the checks in order, the run, and its result."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.cli.calibration_summary import coverage_as_json, excluded_as_json, print_coverage, print_excluded
from quantkit.cli.calibration_tokens import CalibrationOptions
from quantkit.errors import BadInput

if TYPE_CHECKING:
    from quantkit.run.int4.quantize import Int4Result
    from quantkit.run.int4.settings import Int4Settings

Output = Annotated[Path | None, typer.Option("--output", "-o", help="The checkpoint folder to write.")]
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


def quantize(
    settings: Int4Settings,
    source: Path | None,
    out: Path | None,
    *,
    group_size_given: bool,
    keep_layers: str | None,
    tp: int | None,
    memory: str | None,
    force: bool,
    as_json: bool,
    calibration: CalibrationOptions | None = None,
    device: str = "cpu",
    precision: str = "auto",
) -> None:
    """Check what was given, cheapest first, then quantize and print the result; without `calibration`, no text is read.

    `keep_layers` takes the place of the settings' own.
    """
    from quantkit.checkpoint.index import open_checkpoint
    from quantkit.model.tensors import build_model
    from quantkit.run.calibrated.tokens import check_tokens
    from quantkit.run.int4.folder import check_out
    from quantkit.run.int4.quantize import quantize_int4
    from quantkit.run.int4.settings import check_against_model, parse_layers
    from quantkit.run.sizes import parse_size

    if source is None:
        raise BadInput("no source given; name the folder of the FP8 or BF16 checkpoint")
    if out is None:
        raise BadInput(f"no output given; name the folder to write with -o MiniMax-M2.7-{settings.method.upper()}")
    memory_bytes = parse_size(memory, "--memory") if memory is not None else None
    hparams = build_model(open_checkpoint(source)).hparams
    if keep_layers is not None:
        settings = replace(settings, kept_layers=parse_layers(keep_layers, hparams.n_layers))
    settings, lines = check_against_model(settings, hparams, tp, group_size_given)
    for line in lines:
        typer.echo(line, err=True)
    # Whether the output may exist is known only to the run, which perhaps goes on.
    check_out(out, source, force=True)
    tokens = None
    if calibration is not None:
        _protect_inputs(out, calibration)
        tokens = calibration.load(source, hparams)
        check_tokens(len(tokens.ids), hparams, calibration.origin)
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
    )
    if as_json:
        typer.echo(json.dumps(_as_json(result)))
    else:
        _print(result)


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
    for path in (result.output, result.report):
        typer.echo(path)

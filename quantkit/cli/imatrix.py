"""`quantkit imatrix`: calibration text to an importance matrix, streamed through the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.cli import hub, options
from quantkit.cli.calibration_summary import coverage_as_json, excluded_as_json, print_coverage, print_excluded
from quantkit.cli.calibration_tokens import CalibrationOptions
from quantkit.errors import BadInput

if TYPE_CHECKING:
    from quantkit.run.imatrix import ImatrixResult


def command(
    source: options.Source = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="The importance matrix to write.")] = None,
    calibration: options.Calibration = None,
    samples: options.Samples = None,
    sequence_length: options.SequenceLength = None,
    min_tokens_per_expert: options.MinTokens = 256,
    tokens: options.Tokens = None,
    device: options.Device = "cpu",
    precision: options.Precision = "auto",
    cache_size: options.CacheSize = hub.CACHE_SIZE,
    memory: options.Memory = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Measure what enters every weight of a MiniMax-M2 checkpoint, for better k-quants and for i-quants.

    One layer, and of its experts one per worker, is in memory at a time. A killed run goes on at the layer that was not
    finished when the same command is given again.
    """
    from quantkit.checkpoint.index import open_checkpoint
    from quantkit.model.config import hparams_from_config
    from quantkit.run.imatrix import make_imatrix
    from quantkit.run.output import check_folder, refuse_same
    from quantkit.run.sizes import parse_size

    if out is None:
        raise BadInput("no output given; name the file to write with -o imatrix.gguf")
    check_folder(out)
    chosen = CalibrationOptions(tokens, calibration, samples, sequence_length)
    refuse_same(out, chosen.files)
    with hub.opened(source, cache_size, quiet=as_json) as folder:
        hparams = hparams_from_config(open_checkpoint(folder).config, folder / "config.json")
        result = make_imatrix(
            folder,
            out,
            chosen.load(folder, hparams),
            min_tokens=min_tokens_per_expert,
            device=device,
            precision=precision,
            memory=parse_size(memory, "--memory") if memory is not None else None,
            force=force,
            quiet=as_json,
        )
        hub.note_source(folder, out.with_name(out.stem + hub.SOURCE_RECORD))
    if as_json:
        typer.echo(json.dumps(_as_json(result)))
    else:
        _print(result)


def _as_json(result: ImatrixResult) -> dict[str, Any]:
    return {
        "output": str(result.output),
        "report": str(result.report),
        "picture": str(result.picture),
        "tokens": result.tokens,
        "documents": result.documents,
        "tokens_sha256": result.tokens_sha256,
        "precision": result.precision,
        "seconds": round(result.seconds, 3),
        "peak_rss_bytes": result.peak_rss,
        "resumed_layers": result.resumed_layers,
        "coverage": coverage_as_json(result.coverage),
        "overflow_risks": result.overflow_risks,
        "excluded_tokens": excluded_as_json(result.excluded),
        "calibration": result.calibration,
    }


def _print(result: ImatrixResult) -> None:
    from quantkit.run.sizes import format_size

    if result.resumed_layers:
        typer.echo(f"resumed: {result.resumed_layers} layers were on disk")
    print_coverage(
        f"{result.tokens:,} tokens in {result.documents} documents, {result.precision}",
        result.coverage,
        "their layer's mean will stand in",
    )
    print_excluded(result.excluded)
    for risk in result.overflow_risks:
        typer.echo(
            f"overflow {'expected' if risk['overflows'] else 'possible'}: {risk['tensor']}, experts {risk['experts']}, "
            f"largest block sum {risk['largest_block_sum']:.0f} of 65504"
        )
    typer.echo(f"{result.seconds:.1f} s, peak memory {format_size(result.peak_rss)}")
    for path in (result.output, result.report, result.picture):
        typer.echo(path)

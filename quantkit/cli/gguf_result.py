"""How `quantkit gguf` tells what it wrote: as JSON, and on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from quantkit.cli.calibration_summary import coverage_as_json, excluded_as_json, print_coverage, print_excluded

if TYPE_CHECKING:
    from quantkit.run.gguf.compensate import CompensatedFile, CompensatedResult
    from quantkit.run.gguf.importance import Importance
    from quantkit.run.gguf.result import GGUFResult

# Tensors named on a terminal; --json has all of them.
SHOWN = 4


def as_json(
    result: GGUFResult, run: CompensatedResult | None = None, file: CompensatedFile | None = None
) -> dict[str, Any]:
    """One GGUF; of a compensated `run` with what that saw and what its report on the `file` says."""
    found = {
        "outputs": [str(path) for path in result.outputs],
        "mix": result.mix,
        "quantizer": result.quantizer,
        "weights": result.weights,
        "bits_per_weight": round(result.bits_per_weight, 4),
        "source_bytes": result.source_bytes,
        "output_bytes": result.output_bytes,
        "seconds": round(result.seconds, 3),
        "peak_rss_bytes": result.peak_rss,
        "types": result.types,
        "overflow_changes": [
            {"tensor": change.tensor, "from": change.before, "to": change.after} for change in result.overflow_changes
        ],
        "imatrix": _imatrix_as_json(result.importance),
        "ignored_tensors": list(result.ignored),
    }
    if run is None or file is None:
        return found | {"items": result.items, "resumed_items": result.resumed_items}
    return found | {"compensation": _compensation_as_json(run, file)}


def _imatrix_as_json(importance: Importance | None) -> dict[str, Any] | None:
    if importance is None:
        return None
    return {
        "file": str(importance.imatrix.path),
        "sha256": importance.sha256,
        "entries": len(importance.imatrix.entries),
        "guided_tensors": len(importance.guided),
        "tensors_without": list(importance.without),
        "missing_experts": [asdict(missing) for missing in importance.missing],
    }


def _compensation_as_json(run: CompensatedResult, file: CompensatedFile) -> dict[str, Any]:
    kept = (
        "led_by",
        "compensated_tensors",
        "tensors_without",
        "error_to_importance",
        "error_to_plain",
        "tokens_sha256",
        "fallbacks",
    )
    return {
        "report": str(file.report),
        **{key: file.content[key] for key in kept},
        "tokens": run.tokens,
        "precision": run.precision,
        "coverage": coverage_as_json(file.content["coverage"]),
        "excluded_tokens": excluded_as_json(run.excluded),
        "resumed_layers": run.resumed_layers,
    }


def print_compensated(run: CompensatedResult, *, here: bool) -> None:
    """What the run saw, then each GGUF, with its report if they are `here`."""
    if run.resumed_layers:
        typer.echo(f"resumed: {run.resumed_layers} layers were on disk")
    about = run.files[0].content
    print_coverage(
        f"{run.tokens:,} tokens, {run.precision}",
        about["coverage"],
        "w1 and w3 leaned on their layer, w2 took all inputs for alike",
    )
    print_excluded(run.excluded)
    for what, count in about["fallbacks"].items():
        typer.echo(f"fallback: {what}: {count:,}")
    for file in run.files:
        without = file.content["tensors_without"]
        rest = f"; {len(without)} without: {_some(without)}" if without else ""
        typer.echo(f"{file.gguf.mix}: {file.content['compensated_tensors']} tensors compensated{rest}")
        if file.content["error_to_importance"] is not None:
            typer.echo(
                f"{file.gguf.mix}: output error {file.content['error_to_importance']:.3f} x that of the search with "
                f"importance, {file.content['error_to_plain']:.3f} x without"
            )
        print_result(file.gguf, here=here)
        if here:
            typer.echo(file.report)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def print_result(result: GGUFResult, *, here: bool) -> None:
    """One GGUF, its path last if it is `here`."""
    from quantkit.run.sizes import format_size

    for change in result.overflow_changes:
        typer.echo(f"overflow guard: {change.tensor} {change.before} -> {change.after}")
    if result.importance is not None:
        _print_imatrix(result.importance)
    if result.ignored:
        typer.echo(f"left aside: {len(result.ignored)} tensors of multi-token-prediction layers")
    if result.resumed_items:
        typer.echo(f"resumed: {result.resumed_items} of {result.items} items were on disk")
    types = ", ".join(f"{count} {name}" for name, count in sorted(result.types.items()))
    typer.echo(f"tensors: {types}; quantizer: {result.quantizer}")
    typer.echo(
        f"{result.mix}: {format_size(result.source_bytes)} -> {format_size(result.output_bytes)}, "
        f"{result.bits_per_weight:.2f} bits per weight, {result.seconds:.1f} s, "
        f"peak memory {format_size(result.peak_rss)}"
    )
    for path in result.outputs if here else ():
        typer.echo(path)


def _print_imatrix(importance: Importance) -> None:
    if not importance.guided and not importance.without:
        typer.echo("imatrix: not used; these types are rounded without a search that it could guide")
        return
    typer.echo(f"imatrix: guides {len(importance.guided)} tensors")
    if importance.without:
        some = _some(importance.without)
        typer.echo(f"imatrix: no data for {len(importance.without)} tensors, made without it: {some}")
    for missing in importance.missing[:SHOWN]:
        tensor = missing.tensor.removesuffix(".weight")
        typer.echo(
            f"imatrix: {tensor}: {missing.missing} of {missing.experts} experts without data use the layer's mean"
        )
    if len(importance.missing) > SHOWN:
        typer.echo(f"imatrix: the same in {len(importance.missing) - SHOWN} more tensors, see --json")

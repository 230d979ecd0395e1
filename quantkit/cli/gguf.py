"""`quantkit gguf`: a checkpoint to a quantized GGUF in one pass."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.errors import BadInput

if TYPE_CHECKING:
    from quantkit.run.gguf import GGUFResult
    from quantkit.run.importance import Importance

# Tensors named on a terminal; --json has all of them.
SHOWN = 4


def command(
    type_name: Annotated[str, typer.Argument(metavar="TYPE", help="A mix of llama-quantize, such as q4_k_m.")],
    source: Annotated[Path | None, typer.Argument(help="Folder of the FP8 or BF16 checkpoint.")] = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="The GGUF to write.")] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=TYPE", help="Type of the tensors whose GGUF name matches; repeatable."),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe with rules per tensor.")] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(help="Importance matrix of this model, GGUF or .dat; IQ1, IQ2, IQ3_XXS, IQ3_XS, Q2_K_S need one."),
    ] = None,
    split_max_size: Annotated[str, typer.Option(help="Largest size of one output file.")] = "48G",
    overflow_guard: Annotated[
        bool | None,
        typer.Option(
            "--overflow-guard/--no-overflow-guard",
            help="Keep types that overflow in llama.cpp's CUDA kernels off the last layer's down experts (default).",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Worker threads (default: all processors).")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory for the whole process (default: 60 % of free).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output or unfinished run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Quantize a MiniMax-M2 checkpoint to GGUF, straight from its FP8 or BF16 shards.

    A killed run goes on where it was when the same command is given again.
    """
    from quantkit.recipe.recipe import recipe_from_options
    from quantkit.run.gguf import write_gguf
    from quantkit.run.output import refuse_same
    from quantkit.run.sizes import parse_size

    if source is None:
        raise BadInput("no source given; name the folder of the FP8 or BF16 checkpoint")
    if out is None:
        raise BadInput("no output given; name the file to write with -o OUT.gguf")
    refuse_same(out, {"--imatrix": imatrix, "--recipe": recipe})
    result = write_gguf(
        source,
        out,
        recipe_from_options(type_name, recipe, tensor_type or (), overflow_guard),
        imatrix=imatrix,
        split_max_size=parse_size(split_max_size, "--split-max-size"),
        threads=threads,
        memory=parse_size(memory, "--memory") if memory is not None else None,
        force=force,
        quiet=as_json,
    )
    if as_json:
        typer.echo(json.dumps(_as_json(result)))
    else:
        _print(result)


def _as_json(result: GGUFResult) -> dict[str, Any]:
    return {
        "outputs": [str(path) for path in result.outputs],
        "mix": result.mix,
        "weights": result.weights,
        "bits_per_weight": round(result.bits_per_weight, 4),
        "source_bytes": result.source_bytes,
        "output_bytes": result.output_bytes,
        "seconds": round(result.seconds, 3),
        "peak_rss_bytes": result.peak_rss,
        "items": result.items,
        "resumed_items": result.resumed_items,
        "types": result.types,
        "overflow_changes": [
            {"tensor": change.tensor, "from": change.before, "to": change.after} for change in result.overflow_changes
        ],
        "imatrix": _imatrix_as_json(result.importance),
        "ignored_tensors": list(result.ignored),
    }


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


def _print(result: GGUFResult) -> None:
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
    typer.echo(f"tensors: {types}")
    typer.echo(
        f"{result.mix}: {format_size(result.source_bytes)} -> {format_size(result.output_bytes)}, "
        f"{result.bits_per_weight:.2f} bits per weight, {result.seconds:.1f} s, "
        f"peak memory {format_size(result.peak_rss)}"
    )
    for path in result.outputs:
        typer.echo(path)


def _print_imatrix(importance: Importance) -> None:
    if not importance.guided and not importance.without:
        typer.echo("imatrix: not used; these types are rounded without a search that it could guide")
        return
    typer.echo(f"imatrix: guides {len(importance.guided)} tensors")
    if importance.without:
        some = ", ".join(importance.without[:SHOWN]) + (", ..." if len(importance.without) > SHOWN else "")
        typer.echo(f"imatrix: no data for {len(importance.without)} tensors, made without it: {some}")
    for missing in importance.missing[:SHOWN]:
        tensor = missing.tensor.removesuffix(".weight")
        typer.echo(
            f"imatrix: {tensor}: {missing.missing} of {missing.experts} experts without data use the layer's mean"
        )
    if len(importance.missing) > SHOWN:
        typer.echo(f"imatrix: the same in {len(importance.missing) - SHOWN} more tensors, see --json")

"""`quantkit inspect`: what is in a checkpoint or a GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.cli import hub
from quantkit.errors import BadInput
from quantkit.hub.address import parse_address

if TYPE_CHECKING:
    from quantkit.inspect.report import Group, Report

# Facts of a GGUF that are worth a line on a terminal; --json has all of them.
SHOWN_FACTS = (
    "model_type",
    "n_layers",
    "n_experts",
    "hidden",
    "expert_width",
    "vocab",
    "context",
    "general.architecture",
    "general.name",
    "general.size_label",
    "minimax-m2.block_count",
    "minimax-m2.expert_count",
    "minimax-m2.context_length",
    "quantkit.mix",
    "quantkit.compensated",
    "quantkit.compensation.led_by",
)


def command(
    path: Annotated[
        Path, typer.Argument(help="Checkpoint folder, org/name on the Hub, or a GGUF (any part of a split one).")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Show tensors, types, sizes, bits per weight and problems of a checkpoint or GGUF, from headers alone."""
    from quantkit.inspect.checkpoint import inspect_checkpoint
    from quantkit.inspect.gguf import inspect_gguf

    if parse_address(str(path)) is None and not path.exists():
        raise BadInput(f"{path}: no such file or folder")
    with hub.opened(path, quiet=as_json) as place:
        report = inspect_checkpoint(place) if place.is_dir() else inspect_gguf(place)
    if as_json:
        typer.echo(json.dumps(report.as_json()))
    else:
        _print(report)


def _print(report: Report) -> None:
    from quantkit.run.sizes import format_size

    files = "1 file" if report.files == 1 else f"{report.files} files"
    typer.echo(f"{report.path}: {report.kind}, {files}, {format_size(report.file_bytes)}")
    facts = [f"{key.rpartition('.')[2]} {report.facts[key]}" for key in SHOWN_FACTS if key in report.facts]
    typer.echo(", ".join(facts))

    def row(name: str, group: Group) -> list[str]:
        types = ", ".join(f"{count} {kind}" for kind, count in sorted(group.types.items()))
        size = format_size(group.nbytes)
        return [name, str(group.tensors), f"{group.weights:,}", size, f"{group.bits_per_weight:.2f}", types]

    rows = [["role", "tensors", "weights", "size", "bits/weight", "types"]]
    rows += [row(name, group) for name, group in report.by_role().items()]
    rows.append(row("total", report.total))
    widths = [max(len(cells[column]) for cells in rows) for column in range(5)]
    for cells in rows:
        numbers = (cell.rjust(width) for cell, width in zip(cells[1:5], widths[1:], strict=True))
        typer.echo("  ".join([cells[0].ljust(widths[0]), *numbers, cells[5]]))
    for problem in report.problems:
        typer.echo(f"{problem.severity}: {problem.text}")
    if all(problem.severity == "note" for problem in report.problems):
        typer.echo("no problems found")

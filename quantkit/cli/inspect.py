"""`quantkit inspect`: what is in a checkpoint or a GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.errors import BadInput

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
)


def command(
    path: Annotated[Path, typer.Argument(help="Checkpoint folder, or a GGUF (any part of a split one).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Show tensors, types, sizes, bits per weight and problems of a checkpoint or GGUF, from headers alone."""
    from quantkit.inspect.checkpoint import inspect_checkpoint
    from quantkit.inspect.gguf import inspect_gguf

    if not path.exists():
        raise BadInput(f"{path}: no such file or folder")
    report = inspect_checkpoint(path) if path.is_dir() else inspect_gguf(path)
    if as_json:
        typer.echo(json.dumps(report.as_json()))
    else:
        _print(report)


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    from quantkit.run.sizes import format_size

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{report.path}: {report.kind}, {report.files} files, {format_size(report.file_bytes)}", markup=False)
    facts = [f"{key.rpartition('.')[2]} {report.facts[key]}" for key in SHOWN_FACTS if key in report.facts]
    console.print(", ".join(facts), markup=False)

    def row(name: str, group: Group) -> list[str]:
        types = ", ".join(f"{count} {kind}" for kind, count in group.types.items())
        size = format_size(group.nbytes)
        return [name, str(group.tensors), f"{group.weights:,}", size, f"{group.bits_per_weight:.2f}", types]

    table = Table(box=None, pad_edge=False)
    for title in ("role", "tensors", "weights", "size", "bits/weight", "types"):
        table.add_column(title, justify="left" if title in ("role", "types") else "right", no_wrap=title != "types")
    for name, group in report.by_role().items():
        table.add_row(*row(name, group))
    table.add_section()
    table.add_row(*row("total", report.total))
    console.print(table)
    for problem in report.problems:
        console.print(f"{problem.severity}: {problem.text}", markup=False)
    if not report.problems:
        console.print("no problems found")

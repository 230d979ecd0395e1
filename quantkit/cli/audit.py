"""`quantkit audit`: what is wrong with a quantized MiniMax-M2, anybody's, from headers and small files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from quantkit.audit.findings import Finding, Report

BREAKS = 3


def command(
    source: Annotated[
        str,
        typer.Argument(metavar="REPO|PATH", help="owner/name[@revision] on the Hub, a checkpoint folder, or a GGUF."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Judge a quantized MiniMax-M2 from headers and small files alone; exit 3 when something will break."""
    from quantkit.audit.audit import audit
    from quantkit.audit.findings import Verdict

    report = audit(source)
    if as_json:
        typer.echo(json.dumps(report.as_json()))
    else:
        _print(report)
    if report.verdict is Verdict.BREAKS:
        raise typer.Exit(BREAKS)


def _print(report: Report) -> None:
    from quantkit.run.sizes import format_size

    at = f" at {report.commit[:12]}" if report.commit else ""
    typer.echo(f"{report.source}{at}: {format_size(report.total_bytes)}, {format_size(report.bytes_read)} read")
    for model in report.judged:
        files = "1 file" if model.files == 1 else f"{model.files} files"
        typer.echo(f"  {model.path or '.'}: {model.kind}, {model.format}, {files}, {format_size(model.nbytes)}")
    for finding in report.findings:
        typer.echo(f"{finding.severity}: {_text(finding, len(report.judged) > 1)}")
        typer.echo(f"  {finding.id}: {finding.remedy}")
    typer.echo(_verdict(report))


def _text(finding: Finding, several: bool) -> str:
    return (
        f"{finding.place}: {finding.text}"
        if several and finding.place and finding.place not in finding.text
        else finding.text
    )


def _verdict(report: Report) -> str:
    from quantkit.audit.findings import Severity, Verdict

    words = {
        Verdict.BREAKS: "will break",
        Verdict.WARNINGS: "nothing will break, but see the warnings",
        Verdict.CLEAN: "nothing found that will break",
    }
    counts = [(report.count(severity), str(severity)) for severity in Severity]
    said = ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts if count)
    return f"verdict: {words[report.verdict]}" + (f" ({said})" if said else "")

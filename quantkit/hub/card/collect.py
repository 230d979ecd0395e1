"""Facts of one quantization from its files and the reports about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from quantkit.errors import BadInput
from quantkit.hub.card.clean import public_command
from quantkit.hub.card.facts import QuantFacts, ReportFacts, SourceFacts
from quantkit.hub.card.gguf_facts import gguf_facts
from quantkit.hub.card.int4_facts import int4_facts
from quantkit.hub.card.reports import read_report, report_matches


def facts_of(
    files: Sequence[Path],
    reports: Sequence[Path] = (),
    *,
    source: SourceFacts | None = None,
    command: str | None = None,
    imatrix: Path | None = None,
) -> QuantFacts:
    """Facts of one quantization: the folder of an INT4 checkpoint, or one GGUF (any or all of its parts).

    `reports` are what `quantkit verify` wrote about it; of several the newest counts. `source` and `command` are told
    where the files do not say them. `imatrix` is the importance matrix a GGUF was made with. Only headers are read, and
    samples of the weights where there is a report. Raises BadInput for files that are not finished or not ours, and
    for reports of other weights.
    """
    if not files:
        raise BadInput("no file to describe; give a checkpoint's folder or a GGUF")
    facts = int4_facts(files[0], source) if files[0].is_dir() else gguf_facts(files[0], imatrix)
    parts = {file.path for file in facts.files}
    for path in () if files[0].is_dir() else files:
        if path.name not in parts:
            raise BadInput(f"{path}: is another GGUF than {files[0].name}; describe one quantization at a time")
    return replace(
        facts,
        source=source or facts.source,
        command=public_command(command) if command else facts.command,
        report=_newest(files, reports),
    )


def _newest(files: Sequence[Path], reports: Sequence[Path]) -> ReportFacts | None:
    found = [(path, read_report(path)) for path in reports]
    for path, report in found:
        if not report_matches(report, files):
            raise BadInput(f"{path}: is about other weights than {files[0]}; verify these, or leave the report out")
    return max((report for _, report in found), key=lambda report: report.created or "", default=None)

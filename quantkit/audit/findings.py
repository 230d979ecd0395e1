"""What an audit finds, how it is ordered, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

Subject = TypeVar("Subject")
# Names listed in one finding; the rest is counted.
SHOWN = 3


class Severity(StrEnum):
    """An error will not load or answers wrongly, a warning may, a note is good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Verdict(StrEnum):
    """What the findings come to."""

    BREAKS = "breaks"
    WARNINGS = "warnings"
    CLEAN = "clean"


@dataclass(frozen=True)
class Finding:
    """Something that a check found: `text` names file and tensor, `place` is the path of the model it belongs to."""

    id: str
    severity: Severity
    place: str
    text: str
    remedy: str


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """One row of a table of checks: `find` gives a text for each finding."""

    id: str
    severity: Severity
    find: Callable[[Subject], Iterable[str]]
    remedy: str


def run_checks(checks: Sequence[Check[Subject]], subject: Subject, place: str) -> list[Finding]:
    """Apply every check of a table to `subject`."""
    return [
        Finding(check.id, check.severity, place, text, check.remedy) for check in checks for text in check.find(subject)
    ]


@dataclass(frozen=True)
class Judged:
    """One model that was found: a folder of safetensors or a GGUF with its parts, and how its weights are stored."""

    kind: str
    path: str
    format: str
    files: int
    nbytes: int
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The result of an audit; findings are sorted, the worst first."""

    source: str
    commit: str | None
    judged: tuple[Judged, ...]
    findings: tuple[Finding, ...]
    total_bytes: int
    bytes_read: int

    @property
    def verdict(self) -> Verdict:
        found = {finding.severity for finding in self.findings}
        if Severity.ERROR in found:
            return Verdict.BREAKS
        return Verdict.WARNINGS if Severity.WARNING in found else Verdict.CLEAN

    def count(self, severity: Severity) -> int:
        """How many findings have this severity."""
        return sum(finding.severity is severity for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Everything as one JSON object with integer bytes."""
        return {
            "source": self.source,
            "commit": self.commit,
            "verdict": str(self.verdict),
            "models": [
                {
                    "kind": model.kind,
                    "path": model.path,
                    "format": model.format,
                    "files": model.files,
                    "bytes": model.nbytes,
                    "facts": model.facts,
                }
                for model in self.judged
            ],
            "findings": [
                {
                    "id": finding.id,
                    "severity": str(finding.severity),
                    "model": finding.place,
                    "text": finding.text,
                    "remedy": finding.remedy,
                }
                for finding in self.findings
            ],
            "total_bytes": self.total_bytes,
            "bytes_read": self.bytes_read,
        }


def sort_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The worst first; findings of one severity stay in their order."""
    order = list(Severity)
    return tuple(sorted(findings, key=lambda finding: order.index(finding.severity)))


def listed(names: Sequence[str]) -> str:
    """The first names and how many more there are: "a, b, c and 5 more"."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")

"""The calibration set and the coverage of experts, out of the report of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.hub.card.clean import public_text
from quantkit.hub.card.facts import CalibrationFacts, CalibrationSource


def calibration_facts(report: Mapping[str, Any]) -> CalibrationFacts | None:
    """What `report` (quantkit.json, OUT.quantkit.json) says of its calibration tokens; None where there were none."""
    if not report.get("tokens_sha256"):
        return None
    about = report.get("calibration") or {}
    return CalibrationFacts(
        tokens=report.get("tokens"),
        tokens_sha256=report["tokens_sha256"],
        corpus=_name(about.get("corpus") or about.get("file")),
        corpus_sha256=about.get("corpus_sha256"),
        samples=about.get("samples"),
        sequence_length=about.get("sequence_length"),
        precision=report.get("precision"),
        min_tokens_per_expert=(report.get("coverage") or {}).get("min_tokens_per_expert"),
        sources=tuple(_source(source) for source in about.get("sources") or []),
    )


def coverage_numbers(report: Mapping[str, Any]) -> dict[str, float]:
    """The coverage of all experts together, by the report's own keys."""
    found = report.get("coverage") or {}
    return {key: value for key, value in found.items() if isinstance(value, int | float)}


def _source(source: Mapping[str, Any]) -> CalibrationSource:
    return CalibrationSource(
        name=_name(source.get("name")) or "unnamed",
        licence=_name(source.get("licence")),
        origin=_name(source.get("origin")),
        sha256=source.get("sha256"),
        share=source.get("share_reached", source.get("share")),
    )


def _name(value: object) -> str | None:
    return public_text(str(value)) if value else None

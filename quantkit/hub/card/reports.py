"""Reports of `quantkit verify` as a card needs them, whose they are, and copies of them that are fit for the public."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.checkpoint.index import read_json
from quantkit.errors import BadInput
from quantkit.hub.card.clean import public_command, public_text
from quantkit.hub.card.facts import Measured, ReportFacts
from quantkit.verify.outcome import FORMAT
from quantkit.verify.report.figures import flatten, part

REPORT_NAME = "report.json"
_REMEDY = "give a folder that `quantkit verify` wrote"
_LISTS = ("reasons", "not_measured", "notes")
_SIDES = ("reference", "quantized")


def read_report(path: Path) -> ReportFacts:
    """Read a report's folder, or its report.json. Raises BadInput for what is not one."""
    file, report = _load(path)
    verdict = report.get("verdict")
    if not isinstance(verdict, str) or not part(report, "models.quantized"):
        raise BadInput(f"{file}: has no verdict or no model; {_REMEDY}")
    gate, command = part(report, "gate"), report.get("command")
    return ReportFacts(
        verdict=verdict,
        created=_text(report.get("created")),
        gate=_text(gate.get("name")),
        gate_sha256=_text(gate.get("sha256")),
        reasons=_lines(report, "reasons"),
        metrics=_metrics(part(report, "metrics")),
        intervals=_intervals(part(report, "intervals")),
        reference_metrics=_metrics(part(report, "reference_metrics")),
        not_finite=_lines(report, "not_finite"),
        not_measured=_lines(report, "not_measured"),
        notes=_lines(report, "notes"),
        reference=_side(report, "reference"),
        quantized=_side(report, "quantized"),
        texts=_counts(part(report, "texts")),
        requests=_counts(part(report, "requests")),
        versions=_versions(part(report, "versions")),
        command=public_command(command) if isinstance(command, str) and command else None,
        weights_fingerprint=str(part(report, "models.quantized").get("weights_fingerprint") or ""),
    )


def report_matches(report: ReportFacts, files: Sequence[Path]) -> bool:
    """Whether the report is of these weights: a checkpoint's folder, or any part of a GGUF.

    Compares the fingerprint of the weights, which reads samples of them.
    """
    from quantkit.verify.models import describe_model

    return report.weights_fingerprint == describe_model(files[0]).weights_fingerprint


def public_report(path: Path) -> dict[str, bytes]:
    """The three files of a report (report.json, .md, .html) without folders and servers of the machine.

    What both models answered stays as it is.
    """
    from quantkit.verify.report.html import render_html
    from quantkit.verify.report.markdown import render_markdown

    _, report = _load(path)
    for name in _LISTS:
        report[name] = list(_lines(report, name))
    for side in _SIDES:
        model = part(report, f"models.{side}")
        for key, make in (("command", public_command), ("path", lambda text: Path(text).name)):
            if isinstance(model.get(key), str):
                model[key] = make(model[key])
        report.setdefault("models", {})[side] = model
    if isinstance(report.get("command"), str):
        report["command"] = public_command(report["command"])
    report["engines"] = [_public_engine(engine) for engine in report.get("engines") or []]
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return {
        REPORT_NAME: text.encode(),
        "report.md": render_markdown(report).encode(),
        "report.html": render_html(report).encode(),
    }


def _load(path: Path) -> tuple[Path, dict[str, Any]]:
    file = path / REPORT_NAME if path.is_dir() else path
    report = read_json(file, _REMEDY)
    if report.get("format") != FORMAT:
        raise BadInput(f"{file}: not a {FORMAT!r}; {_REMEDY}")
    return file, report


def _public_engine(engine: Mapping[str, Any]) -> dict[str, Any]:
    return {key: public_text(value) if isinstance(value, str) else value for key, value in engine.items()}


def _side(report: Mapping[str, Any], side: str) -> Measured:
    model = part(report, f"models.{side}")
    command = _text(model.get("command"))
    return Measured(
        name=public_text(str(model.get("name") or f"unnamed {side} model")),
        kind=_text(model.get("kind")),
        engine=_text(model.get("engine")),
        engine_version=_text(model.get("engine_version")),
        hardware=_text(model.get("hardware")),
        command=public_command(command) if command else None,
    )


def _metrics(tree: dict[str, Any]) -> dict[str, float | None]:
    """Dotted name to number; figures per domain and category stay in the report."""
    leaves = flatten(tree, without=("domains",))
    return {
        name: _number(value)
        for name, value in leaves.items()
        if ".categories." not in name and (value is None or _number(value) is not None)
    }


def _number(value: object) -> float | None:
    """A finite number, whole ones as int; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _intervals(found: dict[str, Any]) -> dict[str, tuple[float, float]]:
    ends = {
        name: (_number(spread.get("low")), _number(spread.get("high")))
        for name, spread in found.items()
        if isinstance(spread, Mapping)
    }
    return {name: (low, high) for name, (low, high) in ends.items() if low is not None and high is not None}


def _counts(found: dict[str, Any]) -> dict[str, int]:
    return {name: value for name, value in found.items() if isinstance(value, int) and not isinstance(value, bool)}


def _versions(found: dict[str, Any]) -> dict[str, str]:
    """Versions as one level; the machine, which is no version, is told elsewhere."""
    leaves = flatten(found)
    return {name: str(value) for name, value in leaves.items() if value and not name.endswith("machine")}


def _lines(report: Mapping[str, Any], name: str) -> tuple[str, ...]:
    return tuple(public_text(str(line)) for line in report.get(name) or [])


def _text(value: object) -> str | None:
    return public_text(value) if isinstance(value, str) and value else None

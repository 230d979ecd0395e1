"""The three files of a report: report.json, report.md and report.html."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.files import cannot_write, write_aside
from quantkit.verify.report.html import render_html
from quantkit.verify.report.markdown import render_markdown


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write all three into a folder, report.json last, each whole or not at all; existing ones are replaced.

    JSON has no NaN and no infinity: such figures become null and `not_finite` lists their dotted names.
    """
    plain, not_finite = strict(report)
    listed = {"not_finite": not_finite} if not_finite else {}
    texts = {
        "report.html": render_html({**report, **listed}),
        "report.md": render_markdown({**report, **listed}),
        "report.json": json.dumps({**plain, **listed}, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder / "report.json", error) from None
    for name, text in texts.items():
        write_aside(folder / name, [text.encode()])


def strict(report: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A copy of plain JSON values, and the dotted names of those that were not finite and are None now.

    NumPy's numbers become Python's; unpaired surrogates, which are no text in UTF-8, become U+FFFD.
    """
    not_finite: list[str] = []
    return dict(_strict(report, "", not_finite)), not_finite


def _strict(value: Any, name: str, not_finite: list[str]) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Real):
        return _number(value, name, not_finite)
    inside = f"{name}." if name else ""
    if isinstance(value, Mapping):
        return {_strict(str(key), "", []): _strict(each, f"{inside}{key}", not_finite) for key, each in value.items()}
    return [_strict(each, f"{inside}{number}", not_finite) for number, each in enumerate(value)]


def _number(value: numbers.Real, name: str, not_finite: list[str]) -> int | float | None:
    if isinstance(value, numbers.Integral):
        return int(value)
    if math.isfinite(value):
        return float(value)
    not_finite.append(name)
    return None

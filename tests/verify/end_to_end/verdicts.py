"""What tests ask of a report."""

from __future__ import annotations

import math
from typing import Any

Report = dict[str, Any]


def all_finite(value: Any) -> bool:
    """Whether no figure in a tree is null or infinite."""
    if isinstance(value, dict):
        return all(all_finite(each) for each in value.values())
    if isinstance(value, list):
        return all(all_finite(each) for each in value)
    return value is not None and (not isinstance(value, float) or math.isfinite(value))


def failed(report: Report) -> set[str]:
    """Metrics whose checks failed."""
    return {check["metric"] for check in report["gate"]["checks"] if check["verdict"] == "FAIL"}

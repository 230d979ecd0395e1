"""What tests ask of a report."""

from __future__ import annotations

import math
from typing import Any

Report = dict[str, Any]


def all_finite(value: Any, without: frozenset[str] | set[str] = frozenset()) -> bool:
    """Whether no figure in a tree is null or infinite; metrics that nothing could be counted on are `without`."""
    if isinstance(value, dict):
        return all(all_finite(each, without) for name, each in value.items() if name not in without)
    if isinstance(value, list):
        return all(all_finite(each, without) for each in value)
    return value is not None and (not isinstance(value, float) or math.isfinite(value))


def failed(report: Report) -> set[str]:
    """Metrics whose checks failed."""
    return {check["metric"] for check in report["gate"]["checks"] if check["verdict"] == "FAIL"}

"""What a compensated run says about an output: a file beside it with all figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantkit import __version__
from quantkit.calibration.layer_store import Arrays
from quantkit.files import write_aside
from quantkit.quantize.compensate import DAMPING
from quantkit.run.calibrated.tokens import Excluded, calibration_report
from quantkit.run.gguf.calibration import Calibration, compensated_tensors, tensors_without
from quantkit.run.gguf.plan import Plan

SUFFIX = ".quantkit.json"
PREFIX = "losses."


def report_path(out: Path) -> Path:
    """The report of the output `out`, named after it."""
    return out.with_name(out.name.removesuffix(".gguf") + SUFFIX)


def run_report(
    plan: Plan, calibration: Calibration, number: int, layers: Sequence[Arrays], head: Arrays, excluded: Excluded
) -> dict[str, Any]:
    """The content of the report of output `number`.

    Losses are the output errors tr((W - Q) H (W - Q)^T) on some rows of every compensated matrix, summed over the
    experts: by the search `plain` and with the `importance` diag(H), and as written. W of w2 is bent toward the
    output of the original expert in all three.
    """
    output = plan.outputs[number]
    precision = calibration.resolved_precision(plan.model.hparams)
    losses = [_losses(layer, number) for layer in layers]
    last = _losses(head, number)
    found = [entry for layer in [*losses, last] for entry in layer.values()]
    return {
        "quantkit": __version__,
        "mix": output.recipe.base,
        "led_by": plan.outputs[0].recipe.base,
        "source_layout_sha256": plan.checkpoint.layout_hash(),
        "compensated_tensors": len(compensated_tensors(plan.model, output.types)),
        "tensors_without": tensors_without(plan.model, output.types),
        "fallbacks": _fallbacks([*layers, head]),
        **calibration_report(calibration.tokens, precision, excluded, layers, calibration.min_tokens),
        "error_to_importance": _mean([entry["to_importance"] for entry in found]),
        "error_to_plain": _mean([entry["to_plain"] for entry in found]),
        "losses": [{"layer": layer, **entry} for layer, entry in enumerate(losses)],
        "losses_of_output": last,
    }


def write_report(out: Path, report: dict[str, Any]) -> None:
    """Put `report` beside `out`."""
    write_aside(report_path(out), [(json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode()])


def _losses(arrays: Arrays, number: int) -> dict[str, dict[str, float | None]]:
    """By role, for those that were compensated."""
    found = {}
    for name, losses in sorted(arrays.items()):
        if name.startswith(PREFIX) and losses[number].any():
            plain, weighted, chosen = map(float, losses[number])
            found[name.removeprefix(PREFIX)] = {
                "plain": plain,
                "importance": weighted,
                "compensated": chosen,
                "to_plain": round(chosen / plain, 4) if plain else None,
                "to_importance": round(chosen / weighted, 4) if weighted else None,
            }
    return found


def _mean(ratios: Sequence[float | None]) -> float | None:
    """Over layers and roles, each of which counts the same; None where nothing could be compared."""
    known = [ratio for ratio in ratios if ratio is not None]
    return round(float(np.mean(known)), 4) if known else None


def _fallbacks(arrays: Sequence[Arrays]) -> dict[str, int]:
    """How often something had to be done otherwise than meant, in all outputs of the run together."""
    found = {
        f"damping_{damping:g}": sum(int((layer["damping"] == damping).sum()) for layer in arrays)
        for damping in DAMPING[1:]
    }
    found["experts_without_tokens"] = sum(int((layer["rows"] == 0).sum()) for layer in arrays if "rows" in layer)
    return {what: count for what, count in found.items() if count}

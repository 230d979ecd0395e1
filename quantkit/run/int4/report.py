"""What a run says about itself: provenance in the configuration, and quantkit.json beside the weights."""

from __future__ import annotations

from typing import Any

from quantkit import __version__
from quantkit.calibration.layer_store import Arrays
from quantkit.calibration.tokens import TokenSet
from quantkit.quantize.integers import DAMPING, WHOLE_ROW
from quantkit.run.calibrated.tokens import calibration_report
from quantkit.run.int4.folder import Plan
from quantkit.run.int4.passes import LayerPass
from quantkit.run.int4.settings import Int4Settings, Method

# What the method did, in the words that the configuration of a GPTQ file has for it.
GPTQ_KEYS = {"static_groups": True, "true_sequential": True, "damp_percent": DAMPING[0]}
LABELS = {
    Method.AWQ: "AWQ: scale search over router, w1, w3 and over w2, weighted clip search",
    Method.GPTQ: "GPTQ: static activation order, weighted clip search, sequential",
    Method.RTN: "round to nearest with clip search, no calibration",
}


def provenance(settings: Int4Settings) -> dict[str, Any]:
    """What goes into `quantization_config`: who made it, and how."""
    solved = settings.method is Method.GPTQ or settings.then_gptq
    label = LABELS[settings.method] + (", then GPTQ on the scaled weights" if settings.then_gptq else "")
    about = {"quantizer": [f"quantkit:{__version__}"], "method": label}
    return about | (GPTQ_KEYS if solved else {})


def run_report(
    plan: Plan, settings: Int4Settings, tokens: TokenSet | None, layer_pass: LayerPass, arrays: list[Arrays]
) -> dict[str, Any]:
    """The content of quantkit.json. Output errors are tr((W - Q) H (W - Q)^T), on some rows of every matrix."""
    grid = settings.grid
    report: dict[str, Any] = {
        "quantkit": __version__,
        "method": provenance(settings)["method"],
        "format": settings.format,
        "bits": grid.bits,
        "group_size": "row" if grid.group_size == WHOLE_ROW else grid.group_size,
        "symmetric": grid.symmetric,
        "attention": str(settings.attention),
        "kept_layers": list(settings.kept_layers),
        "source_layout_sha256": plan.checkpoint.layout_hash(),
        "source_tensors_left_out": list(plan.model.ignored),
        "fallbacks": _fallbacks(arrays),
        "relative_error": None,
        "coverage": None,
    }
    if tokens is None:
        return report
    solved = [layer for layer in arrays if "loss" in layer]
    return (
        report
        | calibration_report(tokens, layer_pass.precision, layer_pass.excluded, arrays, settings.min_tokens)
        | {
            "relative_error": _ratio(solved),
            "relative_error_by_layer": [round(_ratio([layer]), 4) if "loss" in layer else None for layer in arrays],
        }
    )


def _ratio(layers: list[Arrays]) -> float:
    """Output error of all matrices over that of plain rounding; 1 where no token entered."""
    loss = sum(float(layer["loss"].sum()) for layer in layers)
    rounding = sum(float(layer["rounding_loss"].sum()) for layer in layers)
    return loss / rounding if rounding else 1.0


def _fallbacks(arrays: list[Arrays]) -> dict[str, int]:
    """How often something had to be done otherwise than meant."""
    solved = [layer for layer in arrays if "loss" in layer]
    raised = {
        f"damping_{damping:g}": sum(
            int((layer[matrices] == damping).sum())
            for layer in arrays
            for matrices in ("damping", "attention_damping")
            if matrices in layer
        )
        for damping in DAMPING[1:]
    }
    unreachable = sum(int(layer["unreachable_groups"]) for layer in arrays)
    empty = sum(int((layer["rows"] == 0).sum()) for layer in solved)
    found = raised | {"experts_without_tokens": empty, "groups_beyond_float16_scales": unreachable}
    return {what: count for what, count in found.items() if count}

"""What a checkpoint says of how its integers were found, and whether that agrees with what it is called."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from quantkit.audit.findings import Check, Severity
from quantkit.audit.folder import Folder
from quantkit.audit.quantization import PACKED

# llm-compressor's modifiers that look at data, and the one that only rounds.
CALIBRATED_MODIFIERS = ("AWQModifier", "GPTQModifier", "AutoRoundModifier", "SmoothQuantModifier", "SpinQuantModifier")
ROUNDING_MODIFIER = "QuantizationModifier"
# Methods whose name promises calibration.
PROMISES = re.compile(r"(?<![a-z])(awq|gptq)(?![a-z])", re.IGNORECASE)
# A name with one of these does not hide what it is.
ADMITS = re.compile(r"(?<![a-z])(rtn|round\w*)(?![a-z])", re.IGNORECASE)
ROUNDING_WORDS = re.compile(r"\b(rtn|round[ -]to[ -]nearest|data[ -]free|no calibration)\b", re.IGNORECASE)
# Keys by which AutoRound, AutoAWQ and GPTQModel say what they looked at.
DATA_KEYS = ("dataset", "calibration_dataset", "nsamples", "num_calibration_samples", "seqlen", "iters", "damp_percent")


def _own_report(folder: Folder) -> Mapping[str, Any]:
    return folder.json.get("quantkit.json", {})


def _meta(folder: Folder) -> Mapping[str, Any]:
    meta = folder.quantization.values.get("meta") if folder.quantization else None
    return meta if isinstance(meta, dict) else {}


def _modifiers(folder: Folder) -> list[str]:
    """Names of the modifiers in llm-compressor's recipe."""
    try:
        recipe = yaml.safe_load(folder.texts.get("recipe.yaml", ""))
    except (yaml.YAMLError, RecursionError, ValueError):
        return []
    found: list[str] = []

    def walk(value: Any, depth: int) -> None:
        for key, inner in value.items() if isinstance(value, dict) and depth < 8 else ():
            if isinstance(key, str) and key.endswith("Modifier"):
                found.append(key)
            walk(inner, depth + 1)

    walk(recipe, 0)
    return found


def _tuned_for_nothing(folder: Folder) -> bool:
    """AutoRound without iterations is rounding."""
    quantization = folder.quantization
    return quantization is not None and "iters" in quantization.values and quantization.values["iters"] == 0


def rounding_evidence(folder: Folder) -> list[str]:
    """Where the folder itself says that its integers were found by rounding alone."""
    found = []
    for place, value in (
        ("quantkit.json", _own_report(folder).get("method")),
        ("config.json, meta", _meta(folder).get("method")),
    ):
        if isinstance(value, str) and ROUNDING_WORDS.search(value):
            found.append(f"{place}: {value}")
    modifiers = _modifiers(folder)
    if ROUNDING_MODIFIER in modifiers and not any(name in CALIBRATED_MODIFIERS for name in modifiers):
        found.append(f"recipe.yaml: {ROUNDING_MODIFIER} and nothing that looks at data")
    if _tuned_for_nothing(folder):
        found.append("config.json: AutoRound with 0 iterations")
    return found


def _plain_rounding(folder: Folder) -> Iterator[str]:
    evidence = rounding_evidence(folder)
    name = folder.files.name
    promise = PROMISES.search(name)
    if evidence and promise and not ADMITS.search(name):
        yield f"{name} is called {promise[0].upper()}, but its own metadata says plain rounding ({'; '.join(evidence)})"


def _recorded(folder: Folder) -> Iterator[str]:
    evidence = rounding_evidence(folder)
    if evidence:
        yield f"plain rounding, no calibration ({'; '.join(evidence)})"
        return
    said = [*_quantkit_says(folder), *_meta_says(folder)]
    if modifiers := _modifiers(folder):
        said.append(f"recipe.yaml: {', '.join(modifiers)}")
    values = folder.quantization.values if folder.quantization else {}
    data = {**folder.json.get("quantize_config.json", {}), **values}
    said += [f"{key} {data[key]}" for key in DATA_KEYS if isinstance(data.get(key), str | int | float)]
    if said:
        yield "calibration as recorded: " + "; ".join(said)


def _quantkit_says(folder: Folder) -> Iterator[str]:
    report = _own_report(folder)
    if isinstance(report.get("method"), str):
        yield f"quantkit.json: {report['method']}"
    if isinstance(report.get("tokens"), int):
        yield f"{report['tokens']} tokens, sha256 {str(report.get('tokens_sha256'))[:16]}"


def _meta_says(folder: Folder) -> Iterator[str]:
    meta = _meta(folder)
    makers = meta.get("quantizer")
    if isinstance(makers, list | str):
        yield f"made by {', '.join(map(str, makers)) if isinstance(makers, list) else makers}"
    if isinstance(meta.get("method"), str) and not _own_report(folder):
        yield f"method {meta['method']}"


def _unrecorded(folder: Folder) -> Iterator[str]:
    packed = folder.quantization is not None and folder.quantization.method in PACKED
    if packed and not any(_recorded(folder)):
        yield "nothing in the folder says how the integers were found or on which text"


CHECKS = (
    Check("plain-rounding", Severity.WARNING, _plain_rounding, "call it RTN, or quantize with calibration"),
    Check("calibration", Severity.NOTE, _recorded, "headers cannot show whether scales were really folded or searched"),
    Check("calibration-unrecorded", Severity.NOTE, _unrecorded, "ask its maker; headers cannot show it"),
)  # fmt: skip

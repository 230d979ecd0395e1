"""Where the figures come from: both models, commands, versions, hashes, texts and requests, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.verify.report.figures import ABSENT, figure, flatten, part, size
from quantkit.verify.report.markup import Child, Markup, element
from quantkit.verify.report.summary import LONGEST_LINE
from quantkit.verify.report.tables import table
from quantkit.verify.report.text import cut

_SIDES = ("reference", "quantized")
# Facts of a model in the order of interest; further ones follow.
FACTS: dict[str, str] = {
    "name": "Model",
    "kind": "Kind",
    "bits_per_weight": "Bits per weight",
    "bytes": "Size",
    "engine": "Engine",
    "engine_version": "Version",
    "hardware": "Hardware",
    "revision": "Revision",
    "path": "Path",
    "command": "Command",
    "weights_sha256": "SHA-256 of the weights",
    "config_sha256": "SHA-256 of the configuration",
    "tokenizer_sha256": "SHA-256 of the tokenizer",
}
_CODE = frozenset({"path", "command", "revision"})


def facts(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(key, title, reference's, quantized's) of everything that is known of either model."""
    models = [flatten(part(report, f"models.{side}")) for side in _SIDES]
    keys = [key for key in dict.fromkeys([*FACTS, *models[0], *models[1]]) if any(key in model for model in models)]
    titles = {key: FACTS.get(key, key.replace(".", ": ").replace("_", " ").capitalize()) for key in keys}
    return [(key, titles[key], *(_fact(key, model.get(key)) for model in models)) for key in keys]  # type: ignore[misc]


def is_code(key: str, value: str) -> bool:
    """Whether a fact is to be read letter by letter."""
    return value != ABSENT and (key in _CODE or key.endswith("sha256"))


def models(report: Mapping[str, Any]) -> Markup | None:
    """Both models side by side."""
    rows: list[list[Child]] = []
    for key, name, *values in facts(report):
        rows.append([name, *[element("code", value) if is_code(key, value) else value for value in values]])
    return table("Reference and quantized model", ["", "Reference", "Quantized"], rows, kind="facts") if rows else None


def material(report: Mapping[str, Any]) -> dict[str, str]:
    """Versions, texts, requests and the gate as `what → value`."""
    rows: dict[str, str] = {}
    for name in ("versions", "texts", "requests"):
        rows |= {f"{name}: {key}": figure(value) for key, value in flatten(part(report, name)).items()}
    gate = flatten(part(report, "gate"), without=("checks",))
    rows |= {f"gate: {key}": figure(value) for key, value in gate.items()}
    return {key: cut(value, LONGEST_LINE) for key, value in rows.items()}


def material_table(report: Mapping[str, Any]) -> Markup | None:
    """What was measured with."""
    rows: list[list[Child]] = [[name, element("code", value)] for name, value in material(report).items()]
    return table("Versions, texts, requests and gate", ["", ""], rows, kind="facts") if rows else None


def lines(report: Mapping[str, Any], name: str) -> list[str]:
    """A list of lines of the report, each cut to a readable length."""
    return [cut(str(line), LONGEST_LINE) for line in report.get(name) or []]


def bullets(report: Mapping[str, Any], name: str) -> Markup | None:
    """A list of lines of the report as a list."""
    found = lines(report, name)
    return element("ul", [element("li", line) for line in found], class_="lines") if found else None


def _fact(key: str, value: object) -> str:
    if key == "bytes":
        return size(value)
    if isinstance(value, list | tuple):
        value = " ".join(str(word) for word in value)
    return cut(figure(value), LONGEST_LINE)

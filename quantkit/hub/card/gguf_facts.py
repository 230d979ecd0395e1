"""Facts of a GGUF out of its header: mix, types by role, importance matrix, compensation, the overflow guard."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from quantkit.checkpoint.index import read_json
from quantkit.errors import BadInput
from quantkit.formats.gguf.read import read_gguf, split_parts
from quantkit.hub.address import SCHEME, parse_address
from quantkit.hub.card.calibration import calibration_facts, coverage_numbers
from quantkit.hub.card.facts import (
    GGML,
    GGUF,
    FileFacts,
    ImatrixFacts,
    OverflowFacts,
    QuantFacts,
    RoleFacts,
    SourceFacts,
)
from quantkit.inspect.gguf import inspect_gguf
from quantkit.inspect.report import Report
from quantkit.model.minimax_m2 import GGUF_ARCHITECTURE
from quantkit.recipe.overflow import UNSAFE_TYPES

HUB = "https://huggingface.co/"
_CACHE_KEYS = ("block_count", "attention.head_count_kv", "attention.key_length")
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_LAST_DOWN = "blk.{layer}.ffn_down_exps.weight"
# Key of the report beside a compensated GGUF -> of which method's output errors the rest is told.
_ERRORS = {"error_to_importance": "{search} with an importance matrix", "error_to_plain": "{search}"}


def gguf_facts(path: Path, imatrix: Path | None = None) -> QuantFacts:
    """Facts of the GGUF `path`, any part of a split one. Raises BadInput for what is not a finished one of M2."""
    report = inspect_gguf(path)
    keys = report.facts
    if keys.get("general.architecture") != GGUF_ARCHITECTURE:
        raise BadInput(f"{path}: architecture {keys.get('general.architecture')} is not {GGUF_ARCHITECTURE}")
    if not keys.get("quantkit.version"):
        raise BadInput(f"{path}: was not made by quantkit; its recipe is not known, write a card for it by hand")
    if path.name.endswith(".partial") or any(problem.severity == "error" for problem in report.problems):
        raise BadInput(f"{path}: {report.problems[0].text}; only finished files are described")
    parts = split_parts(path)
    beside = _report_beside(parts[0])
    mix = str(keys.get("quantkit.mix") or "")
    compensated = bool(keys.get("quantkit.compensated"))
    model = str(keys.get("general.name") or _stem(path))
    return QuantFacts(
        name=_name(_stem(path), model, mix),
        kind=GGUF,
        model=model,
        loads="GGUF",
        scheme=mix or ", ".join(sorted(report.total.types)),
        method=_method(keys, compensated),
        files=tuple(FileFacts(part.name, part.stat().st_size) for part in parts),
        roles=tuple(
            RoleFacts(role, group.types, group.weights, group.nbytes) for role, group in report.by_role().items()
        ),
        context=_number(keys, "context_length"),
        cache_bytes=2 * math.prod(_number(keys, key) for key in _CACHE_KEYS) * 2,
        settings=_recipe(keys) | ({"compensate": True, "led_by": _led_by(keys)} if compensated else {}),
        overflow=_overflow(report),
        imatrix=_imatrix(keys),
        calibration=calibration_facts(beside) if beside else _calibration(keys, imatrix),
        coverage=coverage_numbers(beside),
        fallbacks=beside.get("fallbacks") or {},
        error_to={
            words.format(search=_search(keys)): float(beside[key])
            for key, words in _ERRORS.items()
            if beside.get(key) is not None
        },
        versions={
            name: str(keys[key])
            for name, key in (("quantkit", "quantkit.version"), ("quantizer", "quantkit.quantizer"))
            if keys.get(key)
        },
        source=_source(keys),
        source_layout_sha256=keys.get("quantkit.source.layout_sha256"),
    )


def _number(keys: dict[str, Any], name: str) -> int:
    return int(keys.get(f"{GGUF_ARCHITECTURE}.{name}") or 0)


def _led_by(keys: dict[str, Any]) -> str:
    """The mix whose weights flowed from layer to layer while this one was chosen."""
    return str(keys.get("quantkit.compensation.led_by") or keys.get("quantkit.mix"))


def _stem(path: Path) -> str:
    return _PART.sub("", path.name.removesuffix(".gguf"))


def _name(stem: str, model: str, mix: str) -> str:
    """What tells this quantization from others: the file's name without the model's, where it names the mix."""
    name = stem.removeprefix(f"{model}-")
    return name if not mix or mix.lower() in name.lower() else mix


def _method(keys: dict[str, Any], compensated: bool) -> str:
    if compensated:
        led = _led_by(keys)
        words = "integers chosen with error feedback on calibration text, layer by layer, on ggml's own grids"
        return words + (
            f"; states between layers from the {led} of the same run" if led != keys.get("quantkit.mix") else ""
        )
    if keys.get("quantize.imatrix.file"):
        return f"{_search(keys)}, weighted by an importance matrix"
    return f"{_search(keys)}, without an importance matrix"


def _search(keys: dict[str, Any]) -> str:
    """Whose search for block scales the file was made with, or compared with."""
    return "ggml's search" if str(keys.get("quantkit.quantizer")).startswith(GGML) else "quantkit's search"


def _recipe(keys: dict[str, Any]) -> dict[str, Any]:
    recipe = _object(keys.get("quantkit.recipe"))
    return {key: value for key, value in recipe.items() if value not in (None, [], "")}


def _overflow(report: Report) -> OverflowFacts | None:
    layers = report.facts.get(f"{GGUF_ARCHITECTURE}.block_count")
    if not isinstance(layers, int):
        return None
    name = _LAST_DOWN.format(layer=layers - 1)
    types = [tensor.type for tensor in report.tensors if tensor.name == name]
    if not types:
        return None
    guard = bool(report.facts.get("quantkit.overflow_guard"))
    changes = tuple(map(str, _strings(report.facts.get("quantkit.overflow_guard.changes"))))
    return OverflowFacts(layers - 1, types[0], types[0] not in UNSAFE_TYPES, guard, changes)


def _imatrix(keys: dict[str, Any]) -> ImatrixFacts | None:
    file = keys.get("quantize.imatrix.file")
    if not file:
        return None
    return ImatrixFacts(
        file=Path(str(file)).name,
        sha256=keys.get("quantkit.imatrix.sha256"),
        dataset=keys.get("quantize.imatrix.dataset"),
        tensors_without=_strings(keys.get("quantkit.imatrix.tensors_without")),
        missing_experts=_strings(keys.get("quantkit.imatrix.missing_experts")),
    )


def _calibration(keys: dict[str, Any], imatrix: Path | None) -> Any:
    """The calibration set of the file itself, or else of the importance matrix it was made with."""
    if keys.get("quantkit.calibration.tokens_sha256"):
        return calibration_facts(_stated(keys))
    if imatrix is None or imatrix.suffix != ".gguf":
        return None
    from quantkit.formats.imatrix.read import read_imatrix

    if read_imatrix(imatrix).sha256() != keys.get("quantkit.imatrix.sha256"):
        raise BadInput(f"{imatrix}: is not the importance matrix that this GGUF was made with; give that one")
    stated = _stated(read_gguf(imatrix).keys)
    return calibration_facts(stated) if stated["tokens_sha256"] else None


def _stated(keys: dict[str, Any]) -> dict[str, Any]:
    """What the keys of a GGUF say of its calibration, as the reports of other runs have it."""
    provenance = _object(keys.get("quantkit.calibration"))
    return {
        "tokens": provenance.get("tokens"),
        "tokens_sha256": keys.get("quantkit.calibration.tokens_sha256"),
        "calibration": provenance,
        "precision": keys.get("quantkit.calibration.precision"),
        "coverage": {"min_tokens_per_expert": keys.get("quantkit.calibration.min_tokens_per_expert")},
    }


def _source(keys: dict[str, Any]) -> SourceFacts | None:
    repo = str(keys.get("general.base_model.0.repo_url") or "").removeprefix(HUB)
    try:
        return SourceFacts(repo) if repo and parse_address(SCHEME + repo) else None
    except BadInput:  # somebody's own text
        return None


def _report_beside(first: Path) -> dict[str, Any]:
    """The report that a compensated run wrote beside its output, empty where there is none."""
    beside = first.with_name(f"{_stem(first)}.quantkit.json")
    return read_json(beside, "it is the report of the run, restore or delete it") if beside.is_file() else {}


def _strings(value: object) -> tuple[str, ...]:
    """An array's texts; a long one is known by its length only."""
    if value is None:
        return ()
    return tuple(map(str, value)) if isinstance(value, list) else (str(value),)


def _object(text: object) -> dict[str, Any]:
    """The JSON object in a key's text, empty for anything else."""
    try:
        value = json.loads(str(text))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}

"""Facts of a checkpoint folder that quantkit wrote: its scheme, types by role, calibration, GPUs that can share it."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from quantkit.checkpoint.header import TensorEntry
from quantkit.checkpoint.index import Checkpoint, open_checkpoint, read_json
from quantkit.errors import BadInput
from quantkit.hub.card.calibration import calibration_facts, coverage_numbers
from quantkit.hub.card.facts import INT4, FileFacts, GpuFacts, QuantFacts, RoleFacts, SourceFacts
from quantkit.model.config import hparams_from_config
from quantkit.model.minimax_m2 import FAMILY, ORGANIZATION

REPORT_NAME = "quantkit.json"
# What the tensor that holds a module's integers is called, in AWQ and GPTQ, and in compressed-tensors.
PACKED = ("qweight", "weight_packed")
_HELPERS = ("qzeros", "scales", "g_idx", "weight_scale", "weight_shape", "weight_zero_point", "weight_scale_inv")
# Module name -> role, the first that is found in it decides.
_ROLES = (
    (re.compile(r"\.experts\.\d+\.w1$"), "experts w1 (gate)"),
    (re.compile(r"\.experts\.\d+\.w2$"), "experts w2 (down)"),
    (re.compile(r"\.experts\.\d+\.w3$"), "experts w3 (up)"),
    (re.compile(r"\.self_attn\.[qkvo]_proj$"), "attention"),
    (re.compile(r"(\.gate|e_score_correction_bias)$"), "router and its bias"),
    (re.compile(r"norm$"), "norms"),
    (re.compile(r"embed_tokens$"), "embeddings"),
    (re.compile(r"lm_head$"), "output head"),
)
_FORMATS = {"awq": "AWQ", "gptq": "GPTQ", "compressed-tensors": "compressed-tensors"}
_SETTINGS = ("format", "bits", "group_size", "symmetric", "attention", "kept_layers")
MOST_GPUS = 16


def int4_facts(folder: Path, source: SourceFacts | None = None) -> QuantFacts:
    """Facts of the folder out of quantkit.json, config.json and the shards' headers.

    `source` is what the folder does not say. Raises BadInput for a folder that quantkit did not write.
    """
    report = read_json(folder / REPORT_NAME, "only folders that quantkit wrote are described; quantize it again")
    missing = [key for key in ("method", *_SETTINGS) if key not in report]
    if missing:
        raise BadInput(f"{folder / REPORT_NAME}: has no {missing[0]}; not the report of an INT4 run")
    checkpoint = open_checkpoint(folder)
    name = folder.resolve().name
    source = source or family_member(name)
    hparams = hparams_from_config(checkpoint.config, folder / "config.json")
    return QuantFacts(
        name=name,
        kind=INT4,
        model=source.repo.rpartition("/")[2] if source is not None else name,
        loads=_loads(report),
        scheme=_scheme(report),
        method=str(report["method"]),
        files=tuple(
            FileFacts(name, checkpoint.files.size(name)) for name in map(checkpoint.shard_name, checkpoint.shards)
        ),
        roles=_roles(checkpoint, int(report["bits"]), str(report["group_size"])),
        context=hparams.context,
        cache_bytes=2 * hparams.n_layers * hparams.n_kv_heads * hparams.head_dim * 2,
        settings={key: report[key] for key in _SETTINGS},
        gpus=_gpus(folder),
        calibration=calibration_facts(report),
        coverage=coverage_numbers(report),
        fallbacks=report.get("fallbacks") or {},
        error_to=_error_to(report),
        versions={"quantkit": str(report.get("quantkit"))},
        source=source,
        source_layout_sha256=report.get("source_layout_sha256"),
    )


def _loads(report: dict[str, Any]) -> str:
    """The kind of files, as `quantkit serve` tells them apart."""
    from quantkit.verify.servers.loads import PACKED_FP8

    return PACKED_FP8 if report["attention"] == "fp8" else _FORMATS.get(str(report["format"]), str(report["format"]))


def _scheme(report: dict[str, Any]) -> str:
    groups = "whole rows" if report["group_size"] == "row" else f"groups of {report['group_size']}"
    zeros = "" if report["symmetric"] else ", zero points"
    kept = ", ".join(map(str, report["kept_layers"]))
    words = f"experts INT{report['bits']} in {groups}{zeros}, attention {str(report['attention']).upper()}"
    return words + (f", experts of layers {kept} in BF16" if kept else "")


def _error_to(report: dict[str, Any]) -> dict[str, float]:
    error = report.get("relative_error")
    return {"rounding the same weights": float(error)} if error is not None else {}


def family_member(name: str) -> SourceFacts | None:
    """The model of the family that the folder is named after."""
    known = [model for model in FAMILY if name == model or name.startswith(f"{model}-")]
    return SourceFacts(f"{ORGANIZATION}/{max(known, key=len)}") if known else None


def _roles(checkpoint: Checkpoint, bits: int, group_size: str) -> tuple[RoleFacts, ...]:
    modules: defaultdict[str, list[TensorEntry]] = defaultdict(list)
    for entry in checkpoint.tensors.values():
        prefix, _, last = entry.name.rpartition(".")
        modules[prefix if last in (*PACKED, *_HELPERS, "weight") else entry.name].append(entry)
    found: dict[str, RoleFacts] = {}
    for module, entries in modules.items():
        role = next((role for pattern, role in _ROLES if pattern.search(module)), "others")
        before = found.get(role, RoleFacts(role, {}, 0, 0))
        kind, weights = _stored(entries, bits, group_size)
        types = Counter(before.types) + Counter([kind])
        nbytes = before.nbytes + sum(entry.nbytes for entry in entries)
        found[role] = RoleFacts(role, dict(types), before.weights + weights, nbytes)
    order = [role for _, role in _ROLES]
    return tuple(sorted(found.values(), key=lambda one: order.index(one.role) if one.role in order else len(order)))


def _stored(entries: list[TensorEntry], bits: int, group_size: str) -> tuple[str, int]:
    """What a module is stored as, and its number of weights: packed words hold 32 bits each."""
    for entry in entries:
        if entry.name.endswith(PACKED):
            groups = "rows" if group_size == "row" else f"groups of {group_size}"
            return f"INT{bits}, {groups}", math.prod(entry.shape) * 32 // bits
    main = next((entry for entry in entries if not entry.name.endswith(_HELPERS)), entries[0])
    return ("FP8" if main.dtype.startswith("F8") else main.dtype), math.prod(main.shape)


def _gpus(folder: Path) -> GpuFacts:
    from quantkit.verify.servers.parallel import choose_parallel, dimensions, legal_counts

    counts = [count for count in legal_counts(*dimensions(folder)) if count <= MOST_GPUS]
    by_experts = {count: choose_parallel(folder, count).experts for count in counts}
    return GpuFacts(
        tensor_parallel=tuple(count for count in counts if not by_experts[count]),
        expert_parallel=tuple(count for count in counts if by_experts[count]),
    )

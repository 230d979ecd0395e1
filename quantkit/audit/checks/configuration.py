"""Checks of config.json: dimensions, token ids, precision, and what runtimes refuse in a quantization."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from quantkit.audit.checks.sidecars import end_of_turn_ids
from quantkit.audit.findings import Check, Severity, listed
from quantkit.audit.folder import Folder
from quantkit.audit.quantization import AWQ, COMPRESSED, GPTQ, WHOLE_ROW

HALF = ("float16", "torch.float16", "half", "fp16")
# (method, key, values that vLLM loads, the value that a missing key stands for).
LOADED: tuple[tuple[str, str, tuple[Any, ...], Any], ...] = (
    (AWQ, "bits", (4,), None),
    (AWQ, "version", ("gemm",), "gemm"),
    (GPTQ, "bits", (4, 8), None),
    (GPTQ, "sym", (True,), None),
)
ACTIVATION_ORDERS = (None, False, "static", "weight")


def _dimensions(folder: Folder) -> Iterator[str]:
    if folder.config and folder.hparams_problem is not None:
        yield folder.hparams_problem


def _rotary(folder: Folder) -> Iterator[str]:
    if folder.hparams is not None and "rotary_dim" not in folder.config:
        yield f"{folder.named('config.json')}: rotary_dim is missing"


def _half(folder: Folder) -> Iterator[str]:
    for key in ("dtype", "torch_dtype"):
        if folder.config.get(key) in HALF:
            yield f"{folder.named('config.json')}: {key} is {folder.config[key]}"


def _token_ids(folder: Folder) -> Iterator[str]:
    right = end_of_turn_ids(folder)
    stated = folder.config.get("eos_token_id")
    ids = stated if isinstance(stated, list) else [stated]
    if stated is not None and right and not right & {value for value in ids if isinstance(value, int)}:
        yield f"{folder.named('config.json')}: eos_token_id is {stated}, the end of a turn is {min(right)}"


def _remote_code(folder: Folder) -> Iterator[str]:
    auto_map = folder.config.get("auto_map")
    values = [value for value in auto_map.values() if isinstance(value, str)] if isinstance(auto_map, dict) else []
    files = sorted({value.rpartition("--")[2].partition(".")[0] + ".py" for value in values})
    if missing := [file for file in files if not folder.has(file)]:
        yield f"{folder.named('config.json')}: auto_map names files that are not there: {listed(missing)}"


def _settings(folder: Folder) -> Iterator[str]:
    quantization = folder.quantization
    if quantization is None:
        return
    for method, key, allowed, default in LOADED:
        value = quantization.value(key)
        value = default if value is None else value
        value = value.lower() if isinstance(value, str) else value
        if quantization.method == method and value not in allowed:
            wanted = " or ".join(map(str, allowed))
            yield f"{folder.named(quantization.file)}: {key} is {value!r}; vLLM loads {method} with {wanted}"
    if quantization.method == GPTQ:
        if quantization.values.get("desc_act") and quantization.value("group_size") != WHOLE_ROW:
            yield f"{folder.named(quantization.file)}: desc_act is true with groups, which vLLM refuses"
        for key in ("bits", "group_size", "desc_act", "sym"):
            if key not in quantization.values:
                yield f"{folder.named(quantization.file)}: {key} is missing, without which vLLM stops"


def _groups(folder: Folder) -> Iterator[str]:
    quantization = folder.quantization
    if quantization is None or quantization.method != COMPRESSED:
        return
    place = folder.named(quantization.file)
    if not quantization.groups:
        yield f"{place}: config_groups is missing or empty"
    sparsity = quantization.values.get("sparsity_config")
    if isinstance(sparsity, dict) and (
        sparsity.get("targets") or sparsity.get("format", "dense") not in ("dense", None)
    ):
        yield f"{place}: sparsity_config is not empty, which vLLM no longer supports"
    for name, group in quantization.groups.items():
        weights = group["weights"]
        if weights.get("actorder") not in ACTIVATION_ORDERS:
            yield f"{place}: {name}: actorder is {weights['actorder']!r}, which vLLM refuses"
        stored = group.get("format") or quantization.values.get("format")
        if weights.get("type") == "int" and not group.get("input_activations") and stored != "pack-quantized":
            yield f"{place}: {name}: format is {stored!r}; vLLM loads integer experts from pack-quantized only"


FROM_ORIGINAL = "take config.json from the original and change quantization_config alone"
CHECKS = (
    Check("config-dimensions", Severity.ERROR, _dimensions, FROM_ORIGINAL),
    Check("rotary-dim-missing", Severity.ERROR, _rotary,
          "put rotary_dim back (64 in M2.7): llama.cpp's converter and older runtimes need it; " + FROM_ORIGINAL),
    Check("config-half", Severity.WARNING, _half,
          "say bfloat16, or serve with --dtype bfloat16: the last layer's activations overflow half precision"),
    Check("config-eos", Severity.WARNING, _token_ids, "written by a config object; " + FROM_ORIGINAL),
    Check("remote-code-missing", Severity.NOTE, _remote_code,
          "only --trust-remote-code needs them: copy them from the original, or serve without"),
    Check("quantization-unsupported", Severity.ERROR, _settings,
          "quantize again: GPTQ symmetric, without desc_act (static order), AWQ with 4 bits in version gemm"),
    Check("compressed-unsupported", Severity.ERROR, _groups,
          "quantize again with format pack-quantized and no order, or a static one"),
)  # fmt: skip

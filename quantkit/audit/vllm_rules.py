"""Which layers vLLM 0.32 builds quantized: the rules of a configuration, matched against names as vLLM matches them.

Read in vLLM's auto_awq.py, auto_gptq.py, gptq_utils.py, fp8.py and compressed_tensors. MiniMax-M2 in vLLM calls the
parent of the experts `mlp` whatever the checkpoint calls it, and nothing maps one to the other; q, k and v are one
module. The router is never quantized, whatever the rules say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.audit.quantization import AWQ, COMPRESSED, FP8, GPTQ, Quantization
from quantkit.checkpoint.header import TensorEntry

QKV = ("q_proj", "k_proj", "v_proj")
EXPERT_MATRICES = ("w1", "w3", "w2")
# How vLLM and the checkpoint (and SGLang) call the parent of experts.
VLLM_PARENT, CHECKPOINT_PARENT = "mlp", "block_sparse_moe"


class Refused(Exception):
    """vLLM stops with an error; the text says why."""


# Integer and FP8 dtypes, by which vLLM tells quantized modules in safetensors headers.
QUANTIZED_DTYPES = {"I32", "U32", "I64", "U64", "I16", "U16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"}


class Stored:
    """The checkpoint's modules as vLLM sorts them by the dtypes in the headers, where the rules leave it to that.

    Quantized experts are not listed: vLLM asks for linear layers only.
    """

    def __init__(self, modules: Mapping[str, Mapping[str, TensorEntry]]) -> None:
        dtypes = {name: {entry.dtype for entry in parts.values()} for name, parts in modules.items()}
        packed = [name for name, found in dtypes.items() if found & QUANTIZED_DTYPES]
        self.any_quantized = bool(packed)
        self.quantized = [name for name in packed if ".experts." not in name]
        self.plain = [name for name, found in dtypes.items() if not found & QUANTIZED_DTYPES]


@dataclass(frozen=True)
class Unit:
    """What vLLM builds as one: its name, the checkpoint's matrices in it, and the class that rules may name."""

    name: str
    matrices: tuple[str, ...]
    kind: str

    @property
    def is_experts(self) -> bool:
        return self.kind == "RoutedExperts"


def units(layers: Iterable[int], experts: int, parent: str = VLLM_PARENT) -> list[Unit]:
    """Every module of these layers that could be quantized, and the head."""
    found = []
    for layer in layers:
        attention, moe = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.{CHECKPOINT_PARENT}.experts"
        matrices = tuple(f"{moe}.{expert}.{name}" for expert in range(experts) for name in EXPERT_MATRICES)
        found += [
            Unit(f"{attention}.qkv_proj", tuple(f"{attention}.{name}" for name in QKV), "QKVParallelLinear"),
            Unit(f"{attention}.o_proj", (f"{attention}.o_proj",), "RowParallelLinear"),
            Unit(f"model.layers.{layer}.{parent}.experts", matrices, "RoutedExperts"),
        ]
    return [*found, Unit("lm_head", ("lm_head",), "ParallelLMHead")]


def builds_quantized(quantization: Quantization | None, unit: Unit, stored: Stored) -> bool:
    """Whether vLLM builds `unit` quantized; `stored` is what the checkpoint holds.

    Raises Refused where vLLM stops.
    """
    if quantization is None or quantization.method not in _MATCHERS:
        return False
    return _MATCHERS[quantization.method](quantization, unit, stored)


def rule_names(quantization: Quantization) -> list[tuple[str, Callable[[str], bool]]]:
    """The rules that keep modules as they are, each with what tells whether it matches a module's name."""
    if quantization.method == COMPRESSED:
        return [(rule, _matcher(rule)) for rule in quantization.names("ignore")]
    if quantization.method == GPTQ:
        return [(rule, _pattern_matcher(rule[2:])) for rule in _dynamic(quantization) if rule.startswith("-:")]
    return [(rule, _substring_matcher(rule)) for rule in quantization.names("modules_to_not_convert")]


def _substring_matcher(rule: str) -> Callable[[str], bool]:
    return lambda name: rule in name


def _pattern_matcher(pattern: str) -> Callable[[str], bool]:
    return lambda name: _matches(pattern, name)


def _matcher(rule: str) -> Callable[[str], bool]:
    return lambda name: _equal_or_matches(name, rule)


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.match(pattern, name) is not None
    except re.error as error:
        raise Refused(f"the pattern {pattern!r} is no regular expression ({error})") from None


def _equal_or_matches(name: str, rule: str) -> bool:
    return _matches(rule.removeprefix("re:"), name) if rule.startswith("re:") else rule == name


def _of_shards(unit: Unit, test: Callable[[str], bool]) -> bool:
    """A test on each of q, k and v, which must agree."""
    found = {test(shard) for shard in unit.matrices}
    if len(found) > 1:
        raise Refused("its rules treat q, k and v, which are one module, differently")
    return found.pop()


def _is_fused(unit: Unit) -> bool:
    return unit.name.endswith(".qkv_proj")


# AWQ: an entry anywhere in the name


def _awq(quantization: Quantization, unit: Unit, stored: Stored) -> bool:
    if unit.name == "lm_head" and not quantization.values.get("lm_head"):
        return False
    rules = quantization.names("modules_to_not_convert")
    rules = rules or stored.plain

    def skipped(name: str) -> bool:
        return any(rule in name for rule in rules)

    if _is_fused(unit) and not skipped(unit.name):
        return not _of_shards(unit, skipped)
    return not skipped(unit.name)


# GPTQ: regular expressions from the start of the name; linear layers also by what the headers hold


def _dynamic(quantization: Quantization) -> dict[str, Any]:
    found = quantization.values.get("dynamic")
    return found if isinstance(found, dict) else {}


def _gptq(quantization: Quantization, unit: Unit, stored: Stored) -> bool:
    if unit.name == "lm_head" and not quantization.values.get("lm_head"):
        return False
    for rule in _dynamic(quantization):
        negative = rule.startswith("-:")
        if _matches(rule.removeprefix("-:" if negative else "+:"), unit.name):
            if negative:
                return False
            break
    if unit.is_experts:
        return True
    named = _flat(quantization.values.get("modules_in_block_to_quantize"))
    named = named or stored.quantized

    def quantized(name: str) -> bool:
        return (not named and not stored.any_quantized) or any(entry in name for entry in named)

    return _of_shards(unit, quantized) if _is_fused(unit) else quantized(unit.name)


def _flat(values: Any) -> list[str]:
    if isinstance(values, str):
        return [values]
    return [name for value in values for name in _flat(value)] if isinstance(values, list) else []


# compressed-tensors: "ignore" first, then targets: names, "re:" patterns, classes


def _compressed(quantization: Quantization, unit: Unit, stored: Stored) -> bool:
    if unit.is_experts:
        groups = {_scheme(quantization, f"{unit.name}.0.{matrix}", unit) for matrix in EXPERT_MATRICES}
        schemes = {json.dumps(quantization.groups[group].get("weights"), sort_keys=True) for group in groups if group}
        if len(schemes) + (None in groups) > 1:
            raise Refused("w1, w3 and w2 of its experts have different schemes")
        return bool(schemes)
    return _scheme(quantization, unit.name, unit) is not None


def _scheme(quantization: Quantization, name: str, unit: Unit) -> str | None:
    """Name of the group that quantizes module `name`; None: not quantized."""
    ignore = quantization.names("ignore")

    def ignored(module: str) -> bool:
        return any(_equal_or_matches(module, rule) for rule in ignore)

    if ignored(name) or (_is_fused(unit) and _of_shards(unit, ignored)):
        return None
    targets = {target: group for group, values in quantization.groups.items() for target in _targets(values)}
    for target, group in targets.items():
        if _equal_or_matches(name, target):
            return group
    if _is_fused(unit):
        matched = [
            next((target for target in targets if _equal_or_matches(shard, target)), None) for shard in unit.matrices
        ]
        if matched[0] is not None and all(matched):
            return targets[matched[0]]
    if unit.is_experts and "Linear" in targets:  # vLLM lets a group for Linear hold for experts too
        targets.setdefault("RoutedExperts", targets["Linear"])
    for target, group in targets.items():
        if _matches(target[3:], unit.kind) if target.startswith("re:") else target.lower() in unit.kind.lower():
            return group
    return None


def _targets(group: Mapping[str, Any]) -> list[str]:
    targets = group.get("targets")
    names = [name for name in targets if isinstance(name, str)] if isinstance(targets, list) else []
    return [] if len(names) == 1 and names[0].endswith("Attention") else names


# FP8: names in full


def _fp8(quantization: Quantization, unit: Unit, stored: Stored) -> bool:
    if unit.name == "lm_head":
        return False
    rules = quantization.names("ignored_layers") or quantization.names("modules_to_not_convert")
    if unit.is_experts:
        return not any(unit.name in rule for rule in rules)
    if unit.name in rules:
        return False
    return not _of_shards(unit, lambda name: name in rules) if _is_fused(unit) else True


_MATCHERS: dict[str, Callable[[Quantization, Unit, Stored], bool]] = {
    AWQ: _awq,
    GPTQ: _gptq,
    COMPRESSED: _compressed,
    FP8: _fp8,
}

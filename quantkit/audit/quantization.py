"""What a checkpoint says of its own quantization, read without refusing anything: refusing is what checks are for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

AWQ, GPTQ, COMPRESSED, FP8 = "awq", "gptq", "compressed-tensors", "fp8"
PACKED = (AWQ, GPTQ, COMPRESSED)
WHOLE_ROW = -1

# Where runtimes look for it, in this order: the key in config.json, then a whole file.
CONFIG_KEYS = ("quantization_config", "compression_config")
FILES = ("quantize_config.json", "quant_config.json")
# AutoAWQ's own file spells two keys otherwise.
SPELLINGS = {"bits": ("bits", "w_bit"), "group_size": ("group_size", "q_group_size")}


@dataclass(frozen=True)
class Grid:
    """The integers of some matrices; None for what is not said or not understood. `group_size` -1: whole rows."""

    bits: int | None
    group_size: int | None
    symmetric: bool | None


@dataclass(frozen=True)
class Quantization:
    """The object `values` that `file` holds; `method` is its "quant_method" in small letters, "" for none."""

    file: str
    method: str
    values: Mapping[str, Any]

    @cached_property
    def groups(self) -> dict[str, Mapping[str, Any]]:
        """The groups of a compressed-tensors configuration, by name; "weights" is an object in all of them."""
        groups = self.values.get("config_groups")
        found: dict[str, Mapping[str, Any]] = {}
        for name, group in groups.items() if isinstance(groups, dict) else ():
            if isinstance(group, dict):
                weights = group.get("weights")
                found[name] = group | {"weights": weights if isinstance(weights, dict) else {}}
        return found

    @cached_property
    def grids(self) -> tuple[Grid, ...]:
        """Every grid of integers that the configuration speaks of."""
        if self.method == COMPRESSED:
            weights = (group["weights"] for group in self.groups.values())
            return tuple(_compressed_grid(values) for values in weights if values.get("type", "int") == "int")
        if self.method not in PACKED:
            return ()
        base = {key: self.value(key) for key in SPELLINGS} | {"sym": self.values.get("sym")}
        overrides = (base | dict(rule) for rule in _overrides(self.values.get("dynamic")))
        symmetric = [not self.values["zero_point"]] if isinstance(self.values.get("zero_point"), bool) else [None]
        found = [
            Grid(
                _integer(values["bits"]),
                _group(values["group_size"]),
                _flag(values["sym"]) if self.method == GPTQ else symmetric[0],
            )
            for values in (base, *overrides)
        ]
        return tuple(dict.fromkeys(found))

    def value(self, key: str) -> Any:
        """The value of a key in any of its spellings."""
        return next((self.values[name] for name in SPELLINGS.get(key, (key,)) if name in self.values), None)

    def names(self, key: str) -> list[str]:
        """A list of names, empty where it is none."""
        found = self.values.get(key)
        return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def read_quantization(files: Mapping[str, Mapping[str, Any]]) -> Quantization | None:
    """Return what the small files, parsed and by name, say of the quantization; None where they say nothing."""
    config = files.get("config.json", {})
    for key in CONFIG_KEYS:
        if isinstance(config.get(key), dict):
            return _quantization("config.json", config[key])
    for name in FILES:
        if name in files:
            return _quantization(name, files[name])
    return None


def _quantization(file: str, values: Mapping[str, Any]) -> Quantization:
    method = values.get("quant_method")
    if method is None and file in FILES:  # AutoAWQ and AutoGPTQ leave it out of files of their own
        method = AWQ if "w_bit" in values or "zero_point" in values else GPTQ
    return Quantization(file, method.lower() if isinstance(method, str) else "", values)


def _overrides(dynamic: Any) -> Iterator[Mapping[str, Any]]:
    """GPTQModel's rules that change the grid of some modules."""
    for pattern, rule in dynamic.items() if isinstance(dynamic, dict) else ():
        if not pattern.startswith("-:") and isinstance(rule, dict):
            yield rule


def _compressed_grid(weights: Mapping[str, Any]) -> Grid:
    whole = weights.get("strategy") == "channel"
    group_size = WHOLE_ROW if whole else _group(weights.get("group_size"))
    return Grid(_integer(weights.get("num_bits")), group_size, _flag(weights.get("symmetric", True)))


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _group(value: Any) -> int | None:
    size = _integer(value)
    return size if size is not None and (size > 0 or size == WHOLE_ROW) else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None

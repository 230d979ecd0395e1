"""quantization_config of a checkpoint with packed integers: which layout it has, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import BadInput
from quantkit.formats import awq, compressed_tensors, gptq
from quantkit.model.config import DEFAULT_BLOCK
from quantkit.quantize.integers import WHOLE_ROW

# Values of compressed-tensors' "format" whose integers lie in words along the columns.
COMPRESSED_FORMATS = ("pack-quantized", "mixed-precision")


@dataclass(frozen=True)
class PackedScheme:
    """What the configuration promises: (bits, group size) of the packed matrices, and the block of FP8 ones."""

    method: str
    grids: frozenset[tuple[int, int]]
    block: tuple[int, int] = DEFAULT_BLOCK


def read_scheme(config: dict[str, Any], path: Path) -> PackedScheme:
    """Return what `quantization_config` says. Raises BadInput naming `path`, key and value of what is not read here."""
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if not isinstance(quantization, dict) or method not in READERS:
        raise BadInput(
            f"{path}: quantized with {method!r}; the streamed engine reads fp8, {', '.join(READERS)}, and GGUF"
        )
    return READERS[method](quantization, path)


def _one_of(values: dict[str, Any], key: str, allowed: tuple[Any, ...], path: Path) -> Any:
    """The value of `key`; the first one allowed where it is missing."""
    value = values.get(key, allowed[0])
    value = value.lower() if isinstance(value, str) else value
    if value not in allowed:
        raise BadInput(f"{path}: quantization_config: {key} is {value!r}; only {_or(allowed)} is read here")
    return value


def _or(values: tuple[Any, ...]) -> str:
    return " or ".join(map(str, values))


def _group_size(value: Any, path: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not (value > 0 or value == WHOLE_ROW):
        raise BadInput(f"{path}: quantization_config: group_size is {value!r}; a positive number or -1 is needed")
    return value


def _awq(values: dict[str, Any], path: Path) -> PackedScheme:
    _one_of(values, "version", ("gemm",), path)
    _one_of(values, "bits", awq.BITS, path)
    return PackedScheme(awq.NAME, frozenset({(4, _group_size(values.get("group_size"), path))}))


def _gptq(values: dict[str, Any], path: Path) -> PackedScheme:
    _one_of(values, "checkpoint_format", ("gptq",), path)
    _one_of(values, "desc_act", (False,), path)
    bits = _one_of(values, "bits", gptq.BITS, path)
    return PackedScheme(gptq.NAME, frozenset({(bits, _group_size(values.get("group_size"), path))}))


def _compressed(values: dict[str, Any], path: Path) -> PackedScheme:
    _one_of(values, "format", COMPRESSED_FORMATS, path)
    grids, block = set(), DEFAULT_BLOCK
    for weights in _compressed_weights(values, path):
        if weights.get("type") == "float":
            block = _fp8_block(weights, path)
            continue
        _one_of(weights, "type", ("int",), path)
        _one_of(weights, "strategy", ("group", "channel"), path)
        _one_of(weights, "actorder", (None, "static", "weight"), path)
        bits = _one_of(weights, "num_bits", compressed_tensors.BITS, path)
        whole = weights.get("strategy") == "channel"
        grids.add((bits, WHOLE_ROW if whole else _group_size(weights.get("group_size"), path)))
    return PackedScheme(compressed_tensors.NAME, frozenset(grids), block)


def _compressed_weights(values: dict[str, Any], path: Path) -> Iterator[dict[str, Any]]:
    groups = values.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise BadInput(f"{path}: quantization_config: config_groups is missing or empty; download it again")
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            raise BadInput(f"{path}: quantization_config: {name} has no weights; only quantized weights are read here")
        yield weights


def _fp8_block(weights: dict[str, Any], path: Path) -> tuple[int, int]:
    _one_of(weights, "num_bits", (8,), path)
    _one_of(weights, "strategy", ("block",), path)
    block = weights.get("block_structure")
    if not isinstance(block, list) or len(block) != 2 or not all(isinstance(size, int) and size > 0 for size in block):
        raise BadInput(f"{path}: quantization_config: block_structure is {block!r}; two positive numbers are needed")
    return block[0], block[1]


READERS: dict[str, Callable[[dict[str, Any], Path], PackedScheme]] = {
    awq.NAME: _awq,
    gptq.NAME: _gptq,
    compressed_tensors.NAME: _compressed,
}

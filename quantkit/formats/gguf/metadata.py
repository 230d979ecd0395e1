"""Typed key-value pairs of a GGUF file, and the ones that are the same for every model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gguf

# The type of block layouts; 2 since llama.cpp's second change of them (2023-05).
QUANTIZATION_VERSION = 2

Value = str | int | float | bool | Sequence[str] | Sequence[int]


@dataclass(frozen=True)
class Pair:
    """One key and its value; `kind` is a GGUF value type name such as "UINT32" ("ARRAY" takes the elements' type)."""

    key: str
    kind: str
    value: Value


def string(key: str, value: str) -> Pair:
    return Pair(key, "STRING", value)


def uint32(key: str, value: int) -> Pair:
    return Pair(key, "UINT32", value)


def int32(key: str, value: int) -> Pair:
    return Pair(key, "INT32", value)


def float32(key: str, value: float) -> Pair:
    return Pair(key, "FLOAT32", value)


def boolean(key: str, value: bool) -> Pair:
    return Pair(key, "BOOL", value)


def array(key: str, values: Sequence[str] | Sequence[int]) -> Pair:
    return Pair(key, "ARRAY", values)


def split_pairs(part: int, parts: int, tensors: int) -> list[Pair]:
    """Keys that tie split files together: `part` counts from 0, `tensors` is the total over all parts."""
    return [
        Pair("split.no", "UINT16", part),
        Pair("split.count", "UINT16", parts),
        Pair("split.tensors.count", "INT32", tensors),
    ]


def add_pairs(writer: gguf.GGUFWriter, pairs: Sequence[Pair]) -> None:
    """Hand `pairs` to a GGUFWriter. Empty arrays are left out: GGUF cannot state their element type."""
    for pair in pairs:
        if pair.kind == "ARRAY":
            writer.add_array(pair.key, pair.value)
        else:
            writer.add_key_value(pair.key, pair.value, gguf.GGUFValueType[pair.kind])

"""The header of one safetensors file, read and checked before a byte of it is believed.

Format: u64 little-endian header length, JSON header, data section. Tensor offsets count from the data section.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import BadInput

# Bytes per element of the dtypes that may appear; a name outside of this table is refused.
DTYPE_BYTES = {
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "BF16": 2,
    "F16": 2,
    "F32": 4,
    "F64": 8,
    "U8": 1,
    "I8": 1,
    "U16": 2,
    "I16": 2,
    "U32": 4,
    "I32": 4,
    "U64": 8,
    "I64": 8,
    "BOOL": 1,
}

# The safetensors library refuses longer headers; a larger number is a damaged file.
MAX_HEADER_BYTES = 100_000_000
# The header's length, in front of it.
PREFIX_BYTES = 8


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One stored tensor: where its bytes are and how to read them. `offset` counts from the start of the file."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Return the tensors of the safetensors file `path`, checked against the file's size.

    Raises BadInput naming the file (and tensor) when the file is shorter than it claims, the header is not valid
    JSON, or a tensor's bytes disagree with its dtype and shape, leave the file, or overlap another's.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(PREFIX_BYTES)
        return parse_header(path, prefix + file.read(header_bytes(path, prefix, size) - len(prefix)), size)


def header_bytes(path: Path, prefix: bytes, size: int) -> int:
    """How many bytes of a file of `size` its header takes, the length in front included; `prefix` are the first 8."""
    if len(prefix) < PREFIX_BYTES:
        raise BadInput(f"{path}: {size} bytes is too short for a safetensors file; download it again")
    if prefix[:PREFIX_BYTES] == b"version ":
        raise BadInput(f"{path}: a git-lfs pointer, not the weights; download the file itself")
    (length,) = struct.unpack_from("<Q", prefix)
    if length > MAX_HEADER_BYTES or PREFIX_BYTES + length > size:
        raise BadInput(
            f"{path}: header claims {length} bytes but the file has {size}; truncated or damaged, download it again"
        )
    return PREFIX_BYTES + int(length)


def parse_header(path: Path, head: bytes, size: int) -> dict[str, TensorEntry]:
    """Return the tensors of a file of `size` that begins with `head`: all of its header. Errors as `read_header`."""
    raw = _parse(path, head[PREFIX_BYTES:])
    entries = {
        name: _entry(path, name, value, len(head), size) for name, value in raw.items() if name != "__metadata__"
    }
    _check_overlap(path, list(entries.values()))
    return entries


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise BadInput(f"{path}: safetensors header names a tensor twice; the file is damaged")
        return keys

    try:
        raw = json.loads(text, object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8, and numbers without end
        raise BadInput(f"{path}: safetensors header is not valid JSON ({error}); download it again") from None
    if not isinstance(raw, dict):
        raise BadInput(f"{path}: safetensors header is not a JSON object; download it again")
    return raw


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _sizes(values: object, count: int | None = None) -> tuple[int, ...] | None:
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(_is_size(value) for value in values):
        return None
    return tuple(values) if count is None or len(values) == count else None


def _entry(path: Path, name: str, value: Any, data_start: int, file_size: int) -> TensorEntry:
    fields = value if isinstance(value, dict) else {}
    dtype = fields.get("dtype")
    shape = _sizes(fields.get("shape"))
    offsets = _sizes(fields.get("data_offsets"), 2)
    if not isinstance(dtype, str) or shape is None or offsets is None:
        raise BadInput(f"{path}: tensor {name}: header entry lacks a valid dtype, shape or data_offsets")
    if dtype not in DTYPE_BYTES:
        raise BadInput(f"{path}: tensor {name}: unknown dtype {dtype}; known: {', '.join(DTYPE_BYTES)}")
    begin, end = offsets
    needed = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != needed:
        raise BadInput(f"{path}: tensor {name}: {end - begin} bytes stored, {dtype} {list(shape)} needs {needed}")
    if data_start + end > file_size:
        raise BadInput(
            f"{path}: tensor {name} ends at byte {data_start + end} but the file has {file_size}; "
            "truncated, download it again"
        )
    return TensorEntry(name, path, dtype, shape, data_start + begin, needed)


def _check_overlap(path: Path, entries: list[TensorEntry]) -> None:
    ordered = sorted(entries, key=lambda entry: (entry.offset, entry.nbytes))
    for before, after in zip(ordered, ordered[1:], strict=False):
        if before.offset + before.nbytes > after.offset:
            raise BadInput(f"{path}: tensors {before.name} and {after.name} overlap; the file is damaged")

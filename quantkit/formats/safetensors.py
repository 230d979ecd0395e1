"""Where every byte of a safetensors checkpoint goes, known before any weight is made.

File: u64 little-endian header length, JSON header padded with spaces to 8 bytes, data. The header's offsets count from
the data, those in Shard from the start of the file. Data is contiguous, as the safetensors library demands.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.checkpoint.header import DTYPE_BYTES, MAX_HEADER_BYTES
from quantkit.checkpoint.index import SINGLE_NAME
from quantkit.errors import BadInput

ALIGNMENT = 8
# Which framework the tensors are for; older transformers refuse files that do not say.
METADATA = {"format": "pt"}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written: its name, safetensors dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Shard:
    """One output file: its final path, everything before the data, where in the file each tensor starts, its size."""

    path: Path
    header: bytes
    offsets: dict[str, int]
    size: int


def lay_out(folder: Path, tensors: Sequence[TensorSpec], max_bytes: int = 5 * 10**9) -> list[Shard]:
    """Fill shards of at most `max_bytes` with `tensors` in the order given; one alone is called model.safetensors.

    In a shard wider elements come first, otherwise the order stays: then every tensor is aligned to its elements.
    Raises BadInput naming the tensor when a single one does not fit, ValueError when two have the same name.
    """
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ValueError("two tensors have the same name")
    groups = _group(tensors, max_bytes)
    return [_shard(folder / _name(number, len(groups)), group) for number, group in enumerate(groups, 1)]


def index_bytes(shards: Sequence[Shard]) -> bytes:
    """model.safetensors.index.json of these shards."""
    weight_map = {name: shard.path.name for shard in shards for name in shard.offsets}
    total = sum(shard.size - len(shard.header) for shard in shards)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, indent=2).encode() + b"\n"


def _name(number: int, count: int) -> str:
    return SINGLE_NAME if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _group(tensors: Sequence[TensorSpec], limit: int) -> list[list[TensorSpec]]:
    # Headers are taken at their longest: every offset with as many digits as the limit has, all of the padding.
    empty = len(_header([])) + ALIGNMENT
    groups: list[list[TensorSpec]] = [[]]
    size = header = empty
    for tensor in tensors:
        entry = len(json.dumps({tensor.name: _entry(tensor, limit, limit)}, separators=(",", ":")))
        if groups[-1] and (size + entry + tensor.nbytes > limit or header + entry > MAX_HEADER_BYTES):
            groups.append([])
            size = header = empty
        if size + entry + tensor.nbytes > limit:
            raise BadInput(
                f"tensor {tensor.name}: its {tensor.nbytes} bytes and a header do not fit into a file of {limit} "
                f"bytes; allow at least {size + entry + tensor.nbytes}"
            )
        groups[-1].append(tensor)
        size += entry + tensor.nbytes
        header += entry
    return groups


def _shard(path: Path, tensors: Sequence[TensorSpec]) -> Shard:
    ordered = sorted(tensors, key=lambda tensor: -DTYPE_BYTES[tensor.dtype])
    header = _header(ordered)
    offset = len(header)
    offsets = {}
    for tensor in ordered:
        offsets[tensor.name] = offset
        offset += tensor.nbytes
    return Shard(path, header, offsets, offset)


def _header(tensors: Sequence[TensorSpec]) -> bytes:
    """Everything before the data."""
    entries: dict[str, object] = {"__metadata__": METADATA}
    begin = 0
    for tensor in tensors:
        entries[tensor.name] = _entry(tensor, begin, begin + tensor.nbytes)
        begin += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _entry(tensor: TensorSpec, begin: int, end: int) -> dict[str, object]:
    return {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (begin, end)}

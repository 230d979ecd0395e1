"""The header of one GGUF out of its first bytes, however many that turn out to be; nothing of it is believed unchecked.

Layout: magic, version, counts of tensors and keys, keys with their values, tensor infos, padding, data. The reader of
the gguf package wants the whole file and a second per 60,000 tokens; this one wants the header's bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf

from quantkit.errors import BadInput
from quantkit.formats.gguf.types import block_size

VERSIONS = (2, 3)
FIRST_READ = 2**16
GROWTH = 4
# A header beyond this is damage: M2.7's has 10 MB, most of it the vocabulary.
MOST_HEADER = 2**28
# Numbers of tensors, keys and dimensions beyond these are damage as well.
MOST_TENSORS, MOST_KEYS, MOST_DIMENSIONS = 100_000, 100_000, 8

ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32

_SCALARS = {
    gguf.GGUFValueType.UINT8: "B",
    gguf.GGUFValueType.INT8: "b",
    gguf.GGUFValueType.UINT16: "H",
    gguf.GGUFValueType.INT16: "h",
    gguf.GGUFValueType.UINT32: "I",
    gguf.GGUFValueType.INT32: "i",
    gguf.GGUFValueType.FLOAT32: "f",
    gguf.GGUFValueType.BOOL: "?",
    gguf.GGUFValueType.UINT64: "Q",
    gguf.GGUFValueType.INT64: "q",
    gguf.GGUFValueType.FLOAT64: "d",
}


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """A tensor: shape in numpy order (rows last), `type` as ggml names it, `offset` from the start of the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """Keys and tensors of one file. `problems` are what is wrong with the tensors' places, one text each."""

    keys: dict[str, Any]
    tensors: tuple[GGUFTensor, ...]
    problems: tuple[str, ...]


class _NeedsMore(Exception):
    """The header goes on behind the bytes at hand."""


def read_gguf_header(name: str, size: int, read: Callable[[int, int], bytes]) -> GGUFHeader:
    """Return the header of the file `name` of `size` bytes; `read(offset, length)` gives bytes of it.

    Raises BadInput naming the file when it is no GGUF or its header is damaged.
    """
    head, wanted = b"", min(FIRST_READ, size)
    while True:
        head += read(len(head), wanted - len(head))
        if head[:4] != b"GGUF"[: len(head)] or size < 24:
            raise BadInput(f"{name}: not a GGUF; truncated or damaged, download it again")
        try:
            return _parse(name, head, size)
        except _NeedsMore:
            if wanted >= min(size, MOST_HEADER):
                raise BadInput(f"{name}: the file ends within its header; truncated, download it again") from None
            wanted = min(wanted * GROWTH, size, MOST_HEADER)
        except (ValueError, OverflowError) as error:
            raise BadInput(f"{name}: damaged GGUF header ({error}); download it again") from None


class _Cursor:
    """Reads little-endian values one after the other."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size, self.place = data, size, 0

    def take(self, length: int) -> bytes:
        end = self.place + length
        if end > min(self._size, MOST_HEADER):
            raise ValueError(f"{length} bytes at byte {self.place} leave the file")
        if end > len(self._data):
            raise _NeedsMore
        piece = self._data[self.place : end]
        self.place = end
        return piece

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        kind = gguf.GGUFValueType(kind)
        if kind is gguf.GGUFValueType.STRING:
            return self.text()
        if kind is gguf.GGUFValueType.ARRAY:
            element, count = self.number("I"), self.number("Q")
            code = _SCALARS.get(gguf.GGUFValueType(element))
            if code is not None:
                return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize("<" + code))))
            return [self.value(element) for _ in range(count)]
        return self.number(_SCALARS[kind])


def _parse(name: str, head: bytes, size: int) -> GGUFHeader:
    cursor = _Cursor(head, size)
    cursor.take(4)
    version, tensor_count, key_count = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if version not in VERSIONS:
        raise ValueError(f"version {version}")
    if tensor_count > MOST_TENSORS or key_count > MOST_KEYS:
        raise ValueError(f"{tensor_count} tensors and {key_count} keys")
    keys: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.text()
        if key in keys:
            raise ValueError(f"key {key} twice")
        keys[key] = cursor.value(cursor.number("I"))
    infos = [_info(cursor) for _ in range(tensor_count)]
    alignment = keys.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"alignment {alignment!r}")
    start = -(-cursor.place // alignment) * alignment
    tensors = tuple(
        GGUFTensor(tensor, kind, shape, start + offset, _bytes_of(tensor, kind, shape))
        for tensor, kind, shape, offset in infos
    )
    return GGUFHeader(keys, tensors, tuple(_misplaced(name, tensors, alignment, size)))


def _info(cursor: _Cursor) -> tuple[str, str, tuple[int, ...], int]:
    name, dimensions = cursor.text(), cursor.number("I")
    if not 0 < dimensions <= MOST_DIMENSIONS:
        raise ValueError(f"tensor {name} with {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))
    return name, gguf.GGMLQuantizationType(cursor.number("I")).name, shape[::-1], cursor.number("Q")


def _bytes_of(name: str, kind: str, shape: tuple[int, ...]) -> int:
    weights, nbytes = block_size(kind)
    if shape[-1] % weights:
        raise ValueError(f"tensor {name}: rows of {shape[-1]} are no whole blocks of {kind}")
    return math.prod(shape) // weights * nbytes


def _misplaced(name: str, tensors: tuple[GGUFTensor, ...], alignment: int, size: int) -> list[str]:
    """What is wrong with where the tensors are."""
    found = []
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            found.append(f"{name}: tensor {tensor.name} is there twice")
        seen.add(tensor.name)
        if tensor.offset % alignment:
            found.append(f"{name}: tensor {tensor.name} begins at byte {tensor.offset}, not aligned to {alignment}")
        if tensor.offset + tensor.nbytes > size:
            end = tensor.offset + tensor.nbytes
            found.append(f"{name}: tensor {tensor.name} ends at byte {end} but the file has {size}: truncated")
    ordered = sorted(tensors, key=lambda tensor: tensor.offset)
    for before, after in zip(ordered, ordered[1:], strict=False):
        if before.offset + before.nbytes > after.offset:
            found.append(f"{name}: tensors {before.name} and {after.name} overlap")
    return found

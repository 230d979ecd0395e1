"""The older `.dat` form of llama.cpp's importance matrix: where its values are.

Little-endian: number of entries (i32); per entry the name (i32 length, bytes), calls (i32), number of values (i32)
and the values (f32); then, in most files, the number of chunks (i32) and the data set's name (i32 length, bytes). A
value is the mean square times the entry's calls, over all experts of a stacked weight alike, and experts that saw no
token have the mean 1. How many experts there are is not written down.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

from quantkit.errors import BadInput

# Longer names mean that the bytes are something else; ggml's own limit is 63.
MAX_NAME = 256


@dataclass
class LegacyContents:
    """Per entry (offset of the first value, number of values, calls), and what the file says about its data."""

    entries: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    dataset: str | None = None
    chunk_count: int = 0


def read_legacy(path: Path) -> LegacyContents:
    """Walk through the entries of `path` without reading values.

    Raises BadInput naming the file when it is something else or ends too soon.
    """
    size = path.stat().st_size
    contents = LegacyContents()
    with path.open("rb") as file:

        def number() -> int:
            raw = file.read(4)
            if len(raw) < 4:
                raise BadInput(f"{path}: ends within an entry of the importance matrix; truncated, fetch it again")
            return int(struct.unpack("<i", raw)[0])

        def text(length: int) -> str:
            raw = file.read(length) if 0 < length <= MAX_NAME else b""
            if not raw or not raw.isascii() or not raw.decode().isprintable():
                raise BadInput(f"{path}: not an importance matrix; give a GGUF or .dat file of llama-imatrix")
            return raw.decode()

        for _ in range(number()):
            name = text(number())
            calls, values = number(), number()
            if values < 1:
                raise BadInput(f"{path}: entry {name} has {values} values; damaged")
            contents.entries[name] = (file.tell(), values, calls)
            if file.tell() + 4 * values > size:
                raise BadInput(f"{path}: ends within the values of {name}; truncated, fetch it again")
            file.seek(4 * values, os.SEEK_CUR)
        if not contents.entries:
            raise BadInput(f"{path}: not an importance matrix; give a GGUF or .dat file of llama-imatrix")
        if size - file.tell() >= 8:
            contents.chunk_count = max(number(), 0)
            contents.dataset = file.read(max(number(), 0)).decode(errors="replace") or None
    return contents

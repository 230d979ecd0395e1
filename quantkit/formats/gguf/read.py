"""Reading GGUF headers, split files included."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from quantkit.errors import BadInput

PART_NAME = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a GGUF: shape in numpy order (rows last), `type` as ggml names it."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class GGUFContents:
    """Keys of the first part and tensors of all parts, in file order."""

    parts: tuple[Path, ...]
    keys: dict[str, Any]
    tensors: tuple[StoredTensor, ...]


def read_gguf(path: Path) -> GGUFContents:
    """Read keys and tensor infos of `path`; any part of a split model stands for all of it.

    Raises BadInput naming the file when a part is missing, truncated or not GGUF.
    """
    parts = split_parts(path)
    readers = [_open(part) for part in parts]
    try:
        keys = {name: _value(field) for name, field in readers[0].fields.items() if not name.startswith("GGUF.")}
    except (ValueError, IndexError) as error:
        raise BadInput(f"{parts[0]}: a key's value cannot be read ({error}); damaged") from None
    tensors = tuple(
        StoredTensor(
            tensor.name,
            tensor.tensor_type.name,
            tuple(int(length) for length in reversed(tensor.shape)),
            int(tensor.n_bytes),
        )
        for reader in readers
        for tensor in reader.tensors
    )
    return GGUFContents(parts, keys, tensors)


def split_parts(path: Path) -> tuple[Path, ...]:
    """Return all part files of the model that `path` belongs to, in order."""
    match = PART_NAME.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count:
        raise BadInput(f"{path}: part {int(match['number'])} of {count} cannot be; give the file its right name")
    return tuple(
        path.with_name(f"{match['prefix']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)
    )


def _open(path: Path) -> gguf.GGUFReader:
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise BadInput(f"{path}: not a GGUF; give a GGUF, or the folder of a checkpoint")
        return gguf.GGUFReader(path)
    except FileNotFoundError:
        raise BadInput(f"{path}: missing; all parts of a split model must be in one folder") from None
    except BadInput:
        raise
    except Exception as error:
        # The reader has no error type of its own: damage surfaces as whatever numpy or an enum lookup raises.
        raise BadInput(f"{path}: not a readable GGUF ({error}); truncated or damaged") from None


def _value(field: gguf.ReaderField) -> Any:
    # Token lists are long and only their length is of interest; `contents()` would decode all of them.
    if field.types[0] is gguf.GGUFValueType.ARRAY and len(field.data) > 64:
        return f"[{len(field.data)} values]"
    return field.contents()

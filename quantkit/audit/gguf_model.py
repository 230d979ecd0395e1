"""One GGUF model as an audit sees it: its parts, keys and tensors, and what could not be read."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from quantkit.audit.files import AuditFiles, folder_of, join
from quantkit.audit.folder import READERS
from quantkit.audit.gguf_header import GGUFHeader, GGUFTensor, read_gguf_header
from quantkit.errors import BadInput
from quantkit.formats.gguf.read import PART_NAME
from quantkit.inspect.gguf import MAX_LAYERS
from quantkit.model import minimax_m2
from quantkit.model.spec import Role

# Files that hold no model of their own.
BESIDE = ("imatrix", "mmproj", "adapter")


@dataclass(frozen=True)
class Part:
    """One file; `header` is None where `damage` says why it cannot be read."""

    path: str
    size: int
    header: GGUFHeader | None
    damage: str | None = None


@dataclass(frozen=True, eq=False)
class GGUFModel:
    """A GGUF, or all parts of a split one that are there; `missing` are the names of the others."""

    files: AuditFiles
    parts: tuple[Part, ...]
    missing: tuple[str, ...]

    @property
    def path(self) -> str:
        """Path of the first part that is there."""
        return self.parts[0].path

    @cached_property
    def keys(self) -> dict[str, Any]:
        """Keys of the first part."""
        first = self.parts[0].header
        return first.keys if first is not None else {}

    @cached_property
    def tensors(self) -> dict[str, GGUFTensor]:
        """The tensors of all readable parts by name."""
        return {tensor.name: tensor for part in self.parts if part.header for tensor in part.header.tensors}

    @property
    def kind(self) -> str:
        """`general.type`, "model" where it is not said."""
        return str(self.keys.get("general.type", "model"))

    @property
    def architecture(self) -> str | None:
        value = self.keys.get("general.architecture")
        return value if isinstance(value, str) else None

    @property
    def is_judged(self) -> bool:
        """Whether the checks for MiniMax-M2 apply."""
        return self.architecture == minimax_m2.GGUF_ARCHITECTURE

    @property
    def is_readable(self) -> bool:
        """Whether all parts are there and readable, so that what is not found is really missing."""
        return not self.missing and all(part.header is not None for part in self.parts)

    def number(self, key: str) -> Any:
        """The value of a key of the architecture."""
        return self.keys.get(f"{self.architecture}.{key}")

    @property
    def layers(self) -> int | None:
        """How many layers there are; None where the key does not tell."""
        value = self.number("block_count")
        return value if isinstance(value, int) and 0 < value <= MAX_LAYERS else None

    @cached_property
    def expected(self) -> tuple[tuple[Role, str], ...]:
        """Every tensor that a model of so many layers has."""
        layers = range(self.layers or 0)
        inner = ((role, role.gguf.format(layer=layer)) for layer in layers for role in minimax_m2.LAYER_ROLES)
        return (*((role, role.gguf) for role in minimax_m2.HEAD_ROLES), *inner)

    def last_layer_downs(self) -> Iterator[GGUFTensor]:
        """The down projections of the last layer's experts."""
        name = f"blk.{(self.layers or 0) - 1}.ffn_down_exps.weight"
        if name in self.tensors:
            yield self.tensors[name]


def find_gguf_models(files: AuditFiles) -> list[GGUFModel]:
    """Read the headers of every GGUF in `files`, those of other kinds than models left out. Raises RunFailed."""
    groups: dict[tuple[str, str, int], dict[int, str]] = {}
    for path in sorted(files.sizes):
        name = PurePosixPath(path).name
        if not name.endswith((".gguf", ".gguf.partial")):
            continue
        match = PART_NAME.fullmatch(name)
        if match is None:
            groups[folder_of(path), name, 0] = {1: path}
        else:
            key = (folder_of(path), match["prefix"], int(match["count"]))
            groups.setdefault(key, {})[int(match["number"])] = path
    with ThreadPoolExecutor(READERS) as pool:
        paths = [path for parts in groups.values() for path in parts.values()]
        read = dict(zip(paths, pool.map(lambda path: _part(files, path), paths), strict=True))
    models = [_model(files, key, parts, read) for key, parts in groups.items()]
    return [model for model in models if not any(word in model.kind for word in BESIDE)]


def _model(files: AuditFiles, key: tuple[str, str, int], parts: dict[int, str], read: dict[str, Part]) -> GGUFModel:
    folder, prefix, count = key
    expected = {
        number: join(folder, f"{prefix}-{number:05d}-of-{count:05d}.gguf")
        for number in range(1, min(count, 10_000) + 1)
    }
    missing = tuple(path for number, path in expected.items() if number not in parts)
    return GGUFModel(files, tuple(read[parts[number]] for number in sorted(parts)), missing)


def _part(files: AuditFiles, path: str) -> Part:
    size = files.sizes[path]
    try:
        header = read_gguf_header(path, size, lambda offset, length: files.read(path, offset, length))
    except BadInput as error:
        return Part(path, size, None, str(error))
    return Part(path, size, header)

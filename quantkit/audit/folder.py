"""One safetensors checkpoint as an audit sees it: what could be read, and what was wrong with the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from quantkit.audit.files import AuditFiles, in_folder, join
from quantkit.audit.quantization import Quantization, read_quantization
from quantkit.checkpoint.header import PREFIX_BYTES, TensorEntry, header_bytes, parse_header
from quantkit.checkpoint.index import INDEX_NAME
from quantkit.errors import BadInput
from quantkit.model.config import INTEGER_KEYS, hparams_from_config
from quantkit.model.spec import HParams

# Enough for the header of a small shard; that of a large one is fetched by its length.
FIRST_READ = 2**16
READERS = 8

# JSON files that checks look into.
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "quantize_config.json",
    "quant_config.json",
    "quantkit.json",
    INDEX_NAME,
)
# Dimensions that checks count through: more than so many is damage, not a model.
COUNTED = ("n_layers", "n_experts", "n_heads", "n_kv_heads")
MOST_COUNTED = 10_000
TEXT_FILES = ("chat_template.jinja", "recipe.yaml")


@dataclass(frozen=True)
class Shard:
    """One .safetensors file: its tensors by name, empty where `damage` says why they cannot be known."""

    path: str
    size: int
    tensors: dict[str, TensorEntry]
    damage: str | None = None


@dataclass(frozen=True, eq=False)
class Folder:
    """A checkpoint's folder `path` in `files`. `unreadable` has a text per small file that is no such file.

    `shards` are all .safetensors of the folder, by their name in it.
    """

    files: AuditFiles
    path: str
    shards: dict[str, Shard]
    json: dict[str, dict[str, Any]]
    texts: dict[str, str]
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """config.json, empty where it is missing or unreadable."""
        return self.json.get("config.json", {})

    def has(self, name: str) -> bool:
        """Whether the folder has this file."""
        return join(self.path, name) in self.files.sizes

    def named(self, name: str) -> str:
        """The file as messages name it."""
        return join(self.path, name)

    @cached_property
    def weight_map(self) -> dict[str, str] | None:
        """The index: shard by tensor; None where there is none that can be used."""
        found = self.json.get(INDEX_NAME, {}).get("weight_map")
        if not isinstance(found, dict):
            return None
        return {name: shard for name, shard in found.items() if isinstance(shard, str)} or None

    @cached_property
    def loaded(self) -> dict[str, Shard]:
        """The shards that runtimes load: those that the index names, else all."""
        if self.weight_map is None:
            return self.shards
        named = set(self.weight_map.values())
        return {name: shard for name, shard in self.shards.items() if name in named}

    @cached_property
    def is_complete(self) -> bool:
        """Whether every shard is there and readable, so that a tensor that is not found is really missing."""
        named = set((self.weight_map or {}).values())
        return (
            bool(self.tensors) and named <= set(self.shards) and not any(shard.damage for shard in self.loaded.values())
        )

    @cached_property
    def tensors(self) -> dict[str, TensorEntry]:
        """The tensors of all shards that are loaded."""
        return {name: entry for shard in self.loaded.values() for name, entry in shard.tensors.items()}

    @cached_property
    def modules(self) -> dict[str, dict[str, TensorEntry]]:
        """Tensors by the name of their module, then by what follows its last dot."""
        found: dict[str, dict[str, TensorEntry]] = {}
        for name, entry in self.tensors.items():
            module, _, suffix = name.rpartition(".")
            found.setdefault(module, {})[suffix] = entry
        return found

    @cached_property
    def _hparams(self) -> tuple[HParams | None, str | None]:
        try:
            hparams = hparams_from_config(self.config, Path(self.named("config.json")))
        except BadInput as error:
            return None, str(error)
        for name in COUNTED:
            if getattr(hparams, name) > MOST_COUNTED:
                return None, f"{self.named('config.json')}: {INTEGER_KEYS[name]} is {getattr(hparams, name)}; damaged"
        return hparams, None

    @property
    def hparams(self) -> HParams | None:
        """The dimensions in config.json; None where `hparams_problem` says what is wrong with them."""
        return self._hparams[0]

    @property
    def hparams_problem(self) -> str | None:
        return self._hparams[1]

    @cached_property
    def quantization(self) -> Quantization | None:
        """What the configuration says of the weights; None: nothing."""
        return read_quantization(self.json)

    def layers(self) -> Iterator[int]:
        """The layers that config.json promises."""
        yield from range(self.hparams.n_layers if self.hparams else 0)


def read_folder(files: AuditFiles, path: str) -> Folder:
    """Read the headers of all shards and the small files of the folder `path`. Raises RunFailed for the network."""
    unreadable: dict[str, str] = {}
    parsed: dict[str, dict[str, Any]] = {}
    for name in JSON_FILES:
        if join(path, name) in files.sizes:
            value = _json(files.read_all(join(path, name)))
            if value is None:
                unreadable[name] = f"{join(path, name)}: not a JSON object"
            else:
                parsed[name] = value
    texts = {
        name: files.read_all(join(path, name)).decode("utf-8", errors="replace")
        for name in TEXT_FILES
        if join(path, name) in files.sizes
    }
    names = in_folder(files, path, lambda name: name.endswith(".safetensors"))
    with ThreadPoolExecutor(READERS) as pool:
        shards = list(pool.map(lambda name: _shard(files, name), names))
    by_name = {shard.path.removeprefix(path).lstrip("/"): shard for shard in shards}
    return Folder(files, path, by_name, parsed, texts, unreadable)


def _json(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _shard(files: AuditFiles, path: str) -> Shard:
    size = files.sizes[path]
    head = files.read(path, 0, min(FIRST_READ, size))
    try:
        needed = header_bytes(Path(path), head[:PREFIX_BYTES], size)
        head = head[:needed] + files.read(path, len(head), max(needed - len(head), 0))
        tensors = parse_header(Path(path), head, size)
    except BadInput as error:
        return Shard(path, size, {}, str(error))
    return Shard(path, size, tensors, _left_over(path, size, tensors, needed))


def _left_over(path: str, size: int, tensors: dict[str, TensorEntry], start: int) -> str | None:
    """The safetensors library refuses files with bytes that belong to no tensor."""
    end = start
    for entry in sorted(tensors.values(), key=lambda entry: (entry.offset, entry.nbytes)):
        if entry.offset > end:
            return f"{path}: {entry.offset - end} bytes in front of tensor {entry.name} belong to no tensor"
        end = entry.offset + entry.nbytes
    return f"{path}: {size - end} bytes behind the last tensor belong to none" if end < size else None

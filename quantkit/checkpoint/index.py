"""A checkpoint folder as one table of tensors.

Only `weight_map` and the shards' own headers are trusted. The official index has a wrong `metadata.total_size`, and
its shard names count from 0 to a wrong "-of-" number.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from quantkit.checkpoint.header import TensorEntry
from quantkit.checkpoint.shards import ShardFiles, shards_of
from quantkit.errors import BadInput

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: its folder, parsed config.json, tensors by name, its shards in order, and where their bytes are."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    shards: tuple[Path, ...]
    files: ShardFiles

    def shard_name(self, path: Path) -> str:
        """Name of a shard as the index spells it."""
        return path.relative_to(self.folder).as_posix()

    def shard_marks(self) -> dict[str, str]:
        """Return a mark per shard that changes when the file does; weights are not read."""
        digests = {self.shard_name(shard): hashlib.sha256() for shard in self.shards}
        for entry in self.tensors.values():
            mark = repr((entry.name, entry.dtype, entry.shape, entry.offset))
            digests[self.shard_name(entry.path)].update(mark.encode())
        for shard in self.shards:
            name = self.shard_name(shard)
            digests[name].update(self.files.mark(name).encode())
        return {name: digest.hexdigest() for name, digest in digests.items()}

    def shard_bytes(self) -> int:
        """Bytes of all shards together."""
        return sum(self.files.size(self.shard_name(shard)) for shard in self.shards)

    def layout_hash(self) -> str:
        """SHA-256 over config.json and the tensors' names, dtypes and shapes: the same for every copy of a source."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name in sorted(self.tensors):
            entry = self.tensors[name]
            digest.update(repr((name, entry.dtype, entry.shape)).encode())
        return digest.hexdigest()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read config.json, the index (or the single file) and every shard's header; no weights are read.

    Raises BadInput for a missing or damaged file, an index entry that leaves the folder, a tensor that its shard does
    not hold, or a tensor in a shard that the index does not list.
    """
    if not folder.is_dir():
        hint = (
            f"; download it first: hf download {folder} --local-dir {folder.name}"
            if len(folder.parts) == 2 and not folder.exists()
            else ""
        )
        raise BadInput(f"{folder}: not a folder; give the folder of a safetensors checkpoint{hint}")
    config = read_json(folder / "config.json", "a checkpoint folder needs its config.json")
    files = shards_of(folder)
    if (folder / INDEX_NAME).is_file():
        weight_map = _weight_map(folder / INDEX_NAME)
    elif files.has(SINGLE_NAME):
        weight_map = dict.fromkeys(_shard_header(files, folder, SINGLE_NAME), SINGLE_NAME)
    else:
        raise BadInput(f"{folder}: neither {INDEX_NAME} nor {SINGLE_NAME} found; download the checkpoint again")
    shard_names = list(dict.fromkeys(weight_map.values()))
    missing = [name for name in shard_names if not _has(files, folder, name)]
    if missing:
        tensor = next(name for name, shard in weight_map.items() if shard == missing[0])
        more = f" ({len(missing)} shards are missing)" if len(missing) > 1 else ""
        raise BadInput(f"{folder / missing[0]}: shard is missing, tensor {tensor} is in it{more}; repeat the download")
    headers = {name: _shard_header(files, folder, name) for name in shard_names}
    tensors: dict[str, TensorEntry] = {}
    for name, shard in weight_map.items():
        if name not in headers[shard]:
            raise BadInput(f"{folder / shard}: tensor {name} is listed in {INDEX_NAME} but not in this shard")
        tensors[name] = headers[shard][name]
    for shard, header in headers.items():
        for name in header:
            if weight_map.get(name) != shard:
                raise BadInput(f"{folder / shard}: tensor {name} is not listed for this shard in {INDEX_NAME}")
    return Checkpoint(folder, config, tensors, tuple(folder / name for name in shard_names), files)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Parse a JSON object from `path`; BadInput with `remedy` when it is missing or is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: missing; {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a number without end
        raise BadInput(f"{path}: cannot be read as JSON ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: not a JSON object; {remedy}")
    return value


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json(path, "download the index again").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput(f"{path}: weight_map is missing or empty; download the index again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _stays_inside(shard):
            raise BadInput(f"{path}: tensor {name}: shard path {shard!r} leaves the checkpoint folder; refused")
    return weight_map


def _stays_inside(shard: str) -> bool:
    posix, windows = PurePosixPath(shard), PureWindowsPath(shard)
    absolute = posix.is_absolute() or bool(windows.anchor)
    return bool(shard) and "\0" not in shard and not absolute and ".." not in posix.parts + windows.parts


def _has(files: ShardFiles, folder: Path, shard: str) -> bool:
    try:
        return files.has(shard)
    except OSError as error:  # a name too long for the file system, a folder that may not be entered
        raise BadInput(f"{folder / shard}: cannot be read ({error.strerror})") from None


def _shard_header(files: ShardFiles, folder: Path, shard: str) -> dict[str, TensorEntry]:
    try:
        return files.header(shard)
    except OSError as error:
        raise BadInput(f"{folder / shard}: cannot be read ({error.strerror})") from None

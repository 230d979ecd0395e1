"""Types that tests share: synthetic checkpoints and ways to spoil them, and the result of a command line."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file

SMALL = {
    "layers": 2,
    "hidden": 256,
    "width": 256,
    "experts": 4,
    "used": 2,
    "heads": 4,
    "kv_heads": 1,
    "head_dim": 64,
    "vocab": 512,
}
TINY = SMALL | {"layers": 1, "experts": 2}
SMALL_SHARD_BYTES = 400_000


class MakeCheckpoint(Protocol):
    """Writes a synthetic checkpoint of the given dimensions into a folder and returns the folder."""

    def __call__(
        self, folder: Path, *, seed: int = 0, bf16: bool = False, shard_bytes: int = SMALL_SHARD_BYTES, **size: int
    ) -> Path: ...


@dataclass(frozen=True)
class CliResult:
    """What one command line left: its exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        return self.err.splitlines()

    def json(self) -> Any:
        """Stdout as the one JSON object that --json promises."""
        return json.loads(self.out)


class Damage:
    """A checkpoint folder and the ways to spoil it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def index_path(self) -> Path:
        return self.folder / "model.safetensors.index.json"

    def index(self) -> dict[str, Any]:
        return json.loads(self.index_path.read_text())

    def shard_of(self, tensor: str) -> Path:
        return self.folder / self.index()["weight_map"][tensor]

    def edit_json(self, name: str, **values: Any) -> None:
        """Set keys of a JSON file in the folder; the value `...` removes the key."""
        path = self.folder / name
        raw = json.loads(path.read_text())
        raw |= values
        path.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))

    def edit_weight_map(self, **values: Any) -> None:
        index = self.index()
        index["weight_map"] |= values
        index["weight_map"] = {name: shard for name, shard in index["weight_map"].items() if shard is not ...}
        self.index_path.write_text(json.dumps(index))

    def edit_tensors(self, shard: Path, **tensors: Any) -> None:
        """Replace, add or (value `...`) remove tensors of a shard and of the index."""
        kept = load_file(shard) | tensors
        save_file({name: value for name, value in kept.items() if value is not ...}, shard, metadata={"format": "pt"})
        self.edit_weight_map(**{name: ... if value is ... else shard.name for name, value in tensors.items()})

    def replace(self, name: str, tensor: Any) -> Path:
        """Put `tensor` in the place of the one called `name`; return its shard."""
        shard = self.shard_of(name)
        self.edit_tensors(shard, **{name: tensor})
        return shard

    def poke(self, name: str, raw: bytes, at: int = 0) -> Path:
        """Overwrite stored bytes of tensor `name` from its byte `at` on; return its shard."""
        shard = self.shard_of(name)
        with shard.open("r+b") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            begin, _ = json.loads(file.read(length))[name]["data_offsets"]
            file.seek(8 + length + begin + at)
            file.write(raw)
        return shard


Cli = Callable[..., CliResult]

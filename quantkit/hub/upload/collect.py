"""What a publication is made of: models and the files that go along, where each lies and where it goes in the repo."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from quantkit.checkpoint.header import read_header
from quantkit.errors import BadInput
from quantkit.files import PARTIAL
from quantkit.formats.gguf.read import read_gguf, split_parts
from quantkit.hub.upload.origin import stem
from quantkit.hub.upload.push import place_in_repo
from quantkit.hub.upload.to_main import CARD, LICENCE, OWN_FOLDER

INDEX = "model.safetensors.index.json"
SHARDS = ".safetensors"
# What an unfinished run leaves beside its output (a conversion; an INT4 run; an upload while it converts).
UNFINISHED = (PARTIAL, ".journal", ".layers", ".push")
# Terms that go along with GGUFs where they lie beside them.
NOTICES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
# The Hub's convention, by which runtimes know that a GGUF is no model.
IMATRIX = "imatrix"


@dataclass
class Collection:
    """Local files by their places in the repo: `weights`, and `along`, the small ones.

    `models` are the checkpoint folder, or the parts of each GGUF; `name` is that of the folder or the first GGUF,
    `beside` the folder where that lies, and `imatrix` the importance matrix among the weights.
    """

    name: str
    beside: Path
    models: list[tuple[Path, ...]] = field(default_factory=list)
    weights: dict[str, Path] = field(default_factory=dict)
    along: dict[str, Path] = field(default_factory=dict)
    imatrix: Path | None = None

    def drop_imatrix(self) -> None:
        """Leave the importance matrix and what belongs to it out."""
        if self.imatrix is not None:
            beside = _coverage(self.imatrix)
            self.weights = {place: path for place, path in self.weights.items() if path != self.imatrix}
            self.along = {place: path for place, path in self.along.items() if path not in beside}
            self.imatrix = None


def collect(paths: Sequence[Path], imatrix: Path | None) -> Collection:
    """Find everything that belongs to the checkpoint folder, the folder of GGUFs, or the GGUFs `paths`.

    Raises BadInput for what is missing, unfinished or damaged, as far as headers tell.
    """
    if not paths:
        raise BadInput("nothing to publish; name a checkpoint folder, a folder of GGUFs, or GGUFs")
    for path in paths:
        _refuse_unfinished(path)
    if len(paths) == 1 and paths[0].is_dir():
        folder = paths[0]
        found = Collection(folder.resolve().name, folder.resolve().parent)
        ggufs = sorted(folder.glob("*.gguf"))
        if not ggufs:
            _add_checkpoint(found, folder)
    else:
        folder, ggufs = paths[0].parent, [_gguf(path) for path in paths]
        found = Collection(stem(ggufs[0]), folder.resolve())
    models = [path for path in ggufs if IMATRIX not in path.name]
    _add_ggufs(found, models)
    _add_imatrix(found, imatrix or next((path for path in ggufs if path not in models), None))
    if models:
        found.along |= {path.name: path for path in folder.iterdir() if _matches(path, NOTICES)}
    if not found.models:
        raise BadInput(f"{folder}: no model in it; name a checkpoint folder or GGUFs")
    return found


def _refuse_unfinished(path: Path) -> None:
    inside = sorted(path.glob(f"*{PARTIAL}")) if path.is_dir() else []
    whole = path.with_name(stem(path) + ".gguf")
    beside = [one.with_name(one.name + ending) for one in (path, whole) for ending in UNFINISHED]
    for left in [path, *inside, *beside]:
        if left.name.endswith(UNFINISHED) and left.exists():
            raise BadInput(f"{left}: the output of an unfinished run; repeat its command until it is done")
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder")


def _gguf(path: Path) -> Path:
    if path.is_dir() or path.suffix != ".gguf":
        raise BadInput(f"{path}: not a GGUF; give one folder, or GGUFs")
    return path


def _add_checkpoint(found: Collection, folder: Path) -> None:
    """A checkpoint folder goes to the top of the repo as it is, but for its card."""
    files = {path.name: path for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
    for name, path in files.items():
        if not path.is_file():
            raise BadInput(f"{path}: not a file; only files of a checkpoint are published, move it away")
        if name not in (CARD, LICENCE):
            (found.weights if name.endswith(SHARDS) else found.along)[name] = path
    if not found.weights or "config.json" not in files:
        raise BadInput(f"{folder}: neither a checkpoint (config.json and {SHARDS} files) nor GGUFs")
    _check_index(folder, found.weights)
    found.models.append((folder,))


def _check_index(folder: Path, shards: dict[str, Path]) -> None:
    """Refuse an index that does not name exactly the tensors of exactly these shards."""
    path = folder / INDEX
    inside = {shard: set(read_header(file)) for shard, file in shards.items()}
    if not path.exists() and len(shards) == 1:
        return
    try:
        weight_map = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"{path}: missing or not an index of shards; quantize again") from None
    for shard in sorted(inside.keys() | set(weight_map.values())):
        listed = {name for name, where in weight_map.items() if where == shard}
        if shard not in inside or listed != inside[shard]:
            what = "is missing" if shard not in inside else "has other tensors than the index says"
            raise BadInput(f"{folder / shard}: {what}; make the folder again")


def _add_ggufs(found: Collection, ggufs: Iterable[Path]) -> None:
    for path in ggufs:
        parts = split_parts(path)
        if parts in found.models:
            continue
        read_gguf(path)  # missing or truncated parts
        found.models.append(parts)
        found.weights |= {place_in_repo(part): part for part in parts}
        report = path.with_name(stem(path) + ".quantkit.json")
        if report.is_file():
            found.along[OWN_FOLDER + report.name] = report


def _add_imatrix(found: Collection, imatrix: Path | None) -> None:
    if imatrix is None:
        return
    if not imatrix.is_file():
        raise BadInput(f"{imatrix}: no such file; give the importance matrix that the GGUFs were made with")
    # So that no runtime takes it for the model.
    name = imatrix.name if IMATRIX in imatrix.name else f"{imatrix.stem}-{IMATRIX}{imatrix.suffix}"
    found.weights[name] = imatrix
    found.imatrix = imatrix
    found.along |= {OWN_FOLDER + path.name: path for path in _coverage(imatrix)}


def _coverage(imatrix: Path) -> list[Path]:
    """What `quantkit imatrix` wrote beside an importance matrix."""
    paths = [imatrix.with_name(imatrix.stem + ending) for ending in (".coverage.json", ".coverage.png")]
    return [path for path in paths if path.is_file()]


def _matches(path: Path, patterns: Iterable[str]) -> bool:
    return path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in patterns)

"""The folder that stands for a repository: its small files for real, and the headers of its shards beside it.

HF_HOME/quantkit/org--name/COMMIT/source.json     what is there, by the listing of the commit; written last
                                 /name/           the mirror: config.json, tokenizer, LICENSE, ...
                                 /headers/        the first bytes of each shard, through its safetensors header
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from huggingface_hub import constants, try_to_load_from_cache

from quantkit.checkpoint.header import header_bytes
from quantkit.checkpoint.index import INDEX_NAME, SINGLE_NAME, read_json
from quantkit.errors import BadInput
from quantkit.files import write_aside
from quantkit.hub.address import Address
from quantkit.hub.repo_files import RemoteFile, RepoFiles

WEIGHT_SUFFIXES = (
    ".safetensors",
    ".gguf",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".npz",
    ".onnx",
    ".onnx_data",
)
LARGEST_SMALL_FILE = 64 * 2**20
RECORD_NAME = "source.json"
# Enough for the header of a 1.7 GB shard; a longer one takes a second request.
HEADER_GUESS = 256 * 1024
REQUESTS = 8


@dataclass(frozen=True)
class SourceRecord:
    """Where a mirror folder comes from: repository, the revision asked for, its commit, and all files of that."""

    repo: str
    revision: str | None
    commit: str
    endpoint: str
    files: dict[str, RemoteFile]

    @property
    def shards(self) -> dict[str, RemoteFile]:
        """The safetensors files, by path: `size` in bytes and `sha256`."""
        return {path: file for path, file in self.files.items() if path.endswith(".safetensors")}


class Mirror:
    """The mirror of one commit, with what it takes to fill it. `files` reads the rest from the Hub."""

    def __init__(self, files: RepoFiles) -> None:
        self.files = files
        self.root = repo_root(files.repo) / files.commit
        self.folder = self.root / files.repo.partition("/")[2]

    def complete(self) -> None:
        """Fetch what is missing of the small files and headers; a second process that does the same waits."""
        wrong = next((path for path in self.files.files if not _stays_inside(path)), None)
        if wrong is not None:
            raise BadInput(f"{self.files.repo}: the path {wrong!r} leaves the folder; refused")
        self.root.mkdir(parents=True, exist_ok=True)
        with _only_one(self.root / "mirror.lock"), _threads() as pool:
            missing = [file for file in self.files.files.values() if _is_small(file) and not self._has(file)]
            for file, content in zip(missing, pool.map(self._content, missing), strict=True):
                self._write(file, content)
            list(pool.map(self.header, self._needed_shards()))
            self._write_record()

    def header(self, shard: str) -> bytes:
        """The first bytes of a shard, through the end of its safetensors header; from the disk if they are there."""
        path = self.root / "headers" / f"{shard}.header"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_aside(path, [self._read_header(shard)])
        return path.read_bytes()

    def cached(self, path: str) -> Path | None:
        """The user's own copy of a file in the client's cache, if it is there and complete."""
        found = try_to_load_from_cache(self.files.repo, path, revision=self.files.commit)
        if not isinstance(found, str) or Path(found).stat().st_size != self.files.file(path).size:
            return None
        return Path(found)

    def disk_bytes(self) -> int:
        """Disk that mirror and headers take."""
        parts = (self.folder, self.root / "headers")
        return sum(path.stat().st_blocks * 512 for part in parts for path in (part, *part.rglob("*")) if path.exists())

    def _read_header(self, shard: str) -> bytes:
        size = self.files.file(shard).size
        copy = self.cached(shard)
        head = _first_bytes(copy, HEADER_GUESS) if copy else self.files.read(shard, 0, HEADER_GUESS)
        length = header_bytes(self.folder / shard, head[:8], size)
        if length > len(head):
            rest = length - len(head)
            head += _first_bytes(copy, length)[-rest:] if copy else self.files.read(shard, len(head), rest)
        return head[:length]

    def _needed_shards(self) -> list[str]:
        """The shards that the index names, or the single file."""
        if (self.folder / INDEX_NAME).is_file():
            weight_map = read_json(self.folder / INDEX_NAME, "its repository is damaged").get("weight_map")
            names: Iterable[object] = weight_map.values() if isinstance(weight_map, dict) else ()
        else:
            names = [SINGLE_NAME]
        return [name for name in dict.fromkeys(names) if isinstance(name, str) and name in self.files.files]

    def _has(self, file: RemoteFile) -> bool:
        path = self.folder / file.path
        return path.is_file() and path.stat().st_size == file.size

    def _content(self, file: RemoteFile) -> bytes:
        copy = self.cached(file.path)
        content = copy.read_bytes() if copy else b""
        if copy is None or not file.matches(content):
            content = self.files.read_all(file.path, LARGEST_SMALL_FILE)
        return content

    def _write(self, file: RemoteFile, content: bytes) -> None:
        path = self.folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not beside it: the mirror must look like the repository, also after a kill.
        incoming = self.root / "incoming"
        write_aside(incoming, [content])
        incoming.replace(path)

    def _write_record(self) -> None:
        record = SourceRecord(
            self.files.repo, self.files.revision, self.files.commit, constants.ENDPOINT, self.files.files
        )
        if read_record(self.root) != record:
            write_aside(self.root / RECORD_NAME, [json.dumps(asdict(record), indent=1).encode()])


def source_record(folder: Path) -> SourceRecord | None:
    """Where the checkpoint folder comes from, or None when it is no mirror of a Hub repository."""
    record = read_record(folder.parent)
    return record if record is not None and record.repo.partition("/")[2] == folder.name else None


def note_source(folder: Path, path: Path) -> None:
    """Write into the file `path` which commit of which repository the checkpoint `folder` is, if it is one."""
    record = source_record(folder)
    if record is not None:
        # Without the server's address: the file is published, and that may be an internal mirror, with a password.
        said = {name: value for name, value in asdict(record).items() if name != "endpoint"}
        write_aside(path, [(json.dumps(said, indent=1) + "\n").encode()])


def read_record(root: Path) -> SourceRecord | None:
    """The record of a commit's folder; None when its mirror was never completed."""
    try:
        raw = json.loads((root / RECORD_NAME).read_text(encoding="utf-8"))
        return SourceRecord(**{**raw, "files": {path: RemoteFile(**file) for path, file in raw["files"].items()}})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def repo_root(repo: str) -> Path:
    """Where what is kept of a repository is."""
    return Path(constants.HF_HOME) / "quantkit" / repo.replace("/", "--")


def mirrored_listing(address: Address) -> tuple[str, dict[str, RemoteFile]] | None:
    """The commit and files of the newest mirror of a revision that an earlier run completed, without a network.

    `address` may name its revision as that run did, or by the commit.
    """
    records = []
    for path in repo_root(address.repo).glob(f"*/{RECORD_NAME}"):
        record = read_record(path.parent)
        if record is not None and (address.revision or "main") in (record.revision or "main", record.commit):
            records.append((path.stat().st_mtime, record))
    if not records:
        return None
    newest = max(records, key=lambda found: found[0])[1]
    return newest.commit, newest.files


def _is_small(file: RemoteFile) -> bool:
    return file.size <= LARGEST_SMALL_FILE and not file.path.endswith(WEIGHT_SUFFIXES)


def _first_bytes(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _stays_inside(path: str) -> bool:
    posix, windows = PurePosixPath(path), PureWindowsPath(path)
    anchored = posix.is_absolute() or bool(windows.anchor)
    return bool(path) and "\0" not in path and not anchored and ".." not in posix.parts + windows.parts


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests; an interrupted run does not wait for them."""
    pool = ThreadPoolExecutor(REQUESTS)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Inside of this context no other process is."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

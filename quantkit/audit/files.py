"""Where the files to audit are: a folder, one GGUF with its parts, or a repository of the Hub."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from quantkit.errors import BadInput
from quantkit.formats.gguf.read import PART_NAME
from quantkit.hub.address import Address, parse_address

if TYPE_CHECKING:
    from quantkit.hub.repo_files import RepoFiles

# The largest file that is read whole: tokenizer.json and indexes stay far below.
MOST_WHOLE = 64 * 2**20
# Folders of tools beside a download; what is in them belongs to no model.
_TOOL_FOLDERS = (".git", ".cache", ".ipynb_checkpoints")


class AuditFiles(Protocol):
    """Files by their path relative to the source, with `/`. Used by many threads."""

    @property
    def source(self) -> str:
        """The source as messages name it."""
        ...

    @property
    def name(self) -> str:
        """Name of the model: the last part of the folder's or the repository's name."""
        ...

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file."""
        ...

    @property
    def bytes_read(self) -> int:
        """Bytes of the files that were read so far."""
        ...

    @property
    def commit(self) -> str | None:
        """The commit that is judged, on the Hub."""
        ...

    @property
    def complete(self) -> bool:
        """Whether these are all files of a published model: a card and a licence belong to it."""
        ...

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Bytes from `offset` on; fewer than `length` at the end of the file. Raises QuantkitError."""
        ...

    def read_all(self, path: str) -> bytes:
        """A small file. Raises QuantkitError, also for one too large to be what its name says."""
        ...


class LocalFiles:
    """A folder with everything below it, or one GGUF and the parts beside it."""

    def __init__(self, path: Path) -> None:
        """Raises BadInput for a path that is not there or cannot be judged."""
        if path.is_dir():
            self._root, self._paths, self.complete = path, _below(path), False
        elif path.is_file() and path.name.endswith((".gguf", ".gguf.partial")):
            self._root, self._paths, self.complete = path.parent, _parts_beside(path), False
        elif path.exists():
            raise BadInput(f"{path}: neither a folder nor a GGUF; give the folder of a checkpoint, or a .gguf file")
        else:
            raise BadInput(f"{path}: no such file or folder; a repository of the Hub is written owner/name")
        self.source = str(path)
        self.name = path.resolve().name
        self.sizes = {name: (self._root / name).stat().st_size for name in self._paths}
        self.bytes_read = 0
        self.commit: str | None = None
        self._lock = threading.Lock()

    def read(self, path: str, offset: int, length: int) -> bytes:
        try:
            with (self._root / path).open("rb") as file:
                file.seek(offset)
                data = file.read(length)
        except OSError as error:
            raise BadInput(f"{self._root / path}: cannot be read ({error.strerror})") from None
        with self._lock:
            self.bytes_read += len(data)
        return data

    def read_all(self, path: str) -> bytes:
        if self.sizes[path] > MOST_WHOLE:
            raise BadInput(f"{self._root / path}: {self.sizes[path]} bytes is too large for such a file; damaged")
        return self.read(path, 0, self.sizes[path])


class HubFiles:
    """A repository of the Hub at one commit."""

    def __init__(self, address: Address) -> None:
        """Raises BadInput for a repository or revision that is not there or not open to this user."""
        from quantkit.hub.repo_files import RepoFiles

        self._repo: RepoFiles = RepoFiles(address)
        self.source = str(address)
        self.name = address.name
        self.sizes = {path: file.size for path, file in self._repo.files.items()}
        self.commit: str | None = self._repo.commit
        self.complete = True

    @property
    def bytes_read(self) -> int:
        return self._repo.bytes_read

    def read(self, path: str, offset: int, length: int) -> bytes:
        return self._repo.read(path, offset, length)

    def read_all(self, path: str) -> bytes:
        return self._repo.read_all(path, MOST_WHOLE)


def open_files(source: str) -> AuditFiles:
    """Return the files of `source`: a path, or a repository as `owner/name[@revision]`. Raises BadInput."""
    address = parse_address(source)
    return LocalFiles(Path(source)) if address is None else HubFiles(address)


def in_folder(files: AuditFiles, folder: str, wanted: Callable[[str], bool]) -> list[str]:
    """Paths of the files directly in `folder` ("" is the top) whose own names are `wanted`."""
    return [path for path in sorted(files.sizes) if folder_of(path) == folder and wanted(PurePosixPath(path).name)]


def folder_of(path: str) -> str:
    """The folder of a file, "" for the top."""
    return path.rpartition("/")[0]


def join(folder: str, name: str) -> str:
    """Path of the file `name` in `folder`."""
    return f"{folder}/{name}" if folder else name


def _below(root: Path) -> list[str]:
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _TOOL_FOLDERS)
        paths = (Path(folder) / name for name in sorted(names))
        found += [path.relative_to(root).as_posix() for path in paths if path.is_file()]
    return found


def _parts_beside(path: Path) -> list[str]:
    match = PART_NAME.fullmatch(path.name)
    if match is None:
        return [path.name]
    beside = (PART_NAME.fullmatch(other.name) for other in sorted(path.parent.iterdir()) if other.is_file())
    same = [
        found for found in beside if found and (found["prefix"], found["count"]) == (match["prefix"], match["count"])
    ]
    return [found[0] for found in same]

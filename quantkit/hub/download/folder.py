"""The folder of downloaded shards: one living process each, and what a killed one left is used again.

HF_HOME/quantkit/org--name/COMMIT/weights-0/          shards, named as in the repository
                                 /weights-0/checked.json   which of them had the right SHA-256, by size and time
                                 /weights-0.lock      held by the process whose folder it is
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

from quantkit.hub.repo_files import RemoteFile

NOTE_NAME = "checked.json"
# The client's own notes about downloads, unfinished ones among them; it cannot go on with those of another process.
CLIENT_FOLDER = ".cache"


class SpoolFolder:
    """A folder below `root` that no other living process uses, holding nothing but whole shards of `shards`."""

    def __init__(self, root: Path, shards: dict[str, RemoteFile]) -> None:
        self._shards = shards
        self._note_lock = threading.Lock()
        self.path, self._lock = _claim(root)
        for folder, lock in _abandoned(root):
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
        self.path.mkdir(exist_ok=True)
        self._checked = self._read_note()
        self._tidy()

    def present(self) -> list[str]:
        """The shards that are there in full size; `is_checked` says if their content is known to be right."""
        return [name for name, file in self._shards.items() if self._size(name) == file.size]

    def is_checked(self, shard: str) -> bool:
        """Whether this file had the right SHA-256 and has not changed since."""
        return self._checked.get(shard) == self._mark(shard)

    def check_in(self, shard: str) -> None:
        """Remember that the shard's SHA-256 was right."""
        mark = self._mark(shard)
        if mark is None:
            return
        with self._note_lock:
            self._checked[shard] = mark
            aside = self.path / f"{NOTE_NAME}.new"
            aside.write_text(json.dumps(self._checked), encoding="utf-8")
            aside.replace(self.path / NOTE_NAME)

    def remove(self, shard: str) -> None:
        """Delete a shard and the client's notes on it."""
        (self.path / shard).unlink(missing_ok=True)
        for suffix in ("metadata", "lock"):
            (self.path / CLIENT_FOLDER / "huggingface" / "download" / f"{shard}.{suffix}").unlink(missing_ok=True)

    def close(self, *, keep: bool) -> None:
        """Let go of the folder; delete it unless it is to be kept for the next run."""
        if self._lock < 0:
            return
        if not keep:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1

    def _tidy(self) -> None:
        """Delete whatever is not a shard in full size."""
        shutil.rmtree(self.path / CLIENT_FOLDER, ignore_errors=True)
        whole = {self.path / name for name in self.present()}
        for path in sorted(self.path.rglob("*")):
            if path.is_file() and path not in whole and path.name != NOTE_NAME:
                path.unlink(missing_ok=True)

    def _size(self, shard: str) -> int | None:
        with suppress(OSError):
            return (self.path / shard).stat().st_size
        return None

    def _mark(self, shard: str) -> list[object] | None:
        with suppress(OSError):
            stat = (self.path / shard).stat()
            return [stat.st_size, stat.st_mtime_ns, self._shards[shard].sha256]
        return None

    def _read_note(self) -> dict[str, list[object]]:
        with suppress(OSError, ValueError):
            note = json.loads((self.path / NOTE_NAME).read_text(encoding="utf-8"))
            if isinstance(note, dict):
                return {name: mark for name, mark in note.items() if name in self._shards}
        return {}


def _claim(root: Path) -> tuple[Path, int]:
    """The first folder that no living process has, and the descriptor of its lock."""
    root.mkdir(parents=True, exist_ok=True)
    for number in count():
        folder = root / f"weights-{number}"
        lock = _try_lock(folder)
        if lock is not None:
            return folder, lock
    raise AssertionError("there is always another number")


def _abandoned(root: Path) -> Iterator[tuple[Path, int]]:
    """Further folders whose processes are gone, also of other commits, each with its lock's descriptor, to be closed.

    Nobody would ever use them again where main has moved, and the bound on the disk is for all of them.
    """
    for folder in sorted(root.parent.glob("*/weights-*")):
        if folder.is_dir():
            lock = _try_lock(folder)  # also refused for our own: a lock belongs to the descriptor, not the process
            if lock is not None:
                yield folder, lock


def _try_lock(folder: Path) -> int | None:
    lock = os.open(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock

"""What is up, kept beside the output so that a killed run uploads nothing twice.

A text file of JSON lines: the first says which run this is, every further one names a file of which the repo was seen
to hold the right bytes, or the commit that brought all of them to main. A line counts once it ends in a newline. No
token ever enters it.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import BadInput
from quantkit.files import cannot_write

CLOSED = -1


@dataclass(frozen=True)
class Target:
    """What makes two pushes the same: the repo, and `identity` for everything that decides the files' bytes."""

    repo: str
    name: str
    identity: str


@dataclass(frozen=True)
class Uploaded:
    """One file in the repo: where, its bytes, git's hash of its entry, the commit that brought it to staging.

    `mtime_ns` is the local file's, to recognise it where it is kept.
    """

    path: str
    size: int
    sha256: str
    oid: str
    commit: str
    mtime_ns: int


class PushJournal:
    """The journal of one push, locked for as long as it is open. Thread-safe."""

    def __init__(self, path: Path, target: Target, *, restart: bool = False) -> None:
        """Open or begin the journal at `path`; one of another run is refused, or thrown away with `restart`."""
        self.path = path
        self.files: dict[str, Uploaded] = {}
        self.published: str | None = None
        self._lock = threading.Lock()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise BadInput(f"{path}: journal of the upload cannot be opened ({error.strerror})") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise BadInput(f"{path}: another run is uploading this; wait for it or stop it") from None
        try:
            if restart or not self._load(target):
                os.ftruncate(self._file, 0)
                self._append(asdict(target))
        except BaseException:
            os.close(self._file)
            raise

    def record(self, uploaded: Uploaded) -> None:
        """Note that a file is up and was checked."""
        self._append(asdict(uploaded))
        self.files[uploaded.path] = uploaded

    def record_published(self, commit: str) -> None:
        """Note that this commit on main has everything."""
        self._append({"published": commit})
        self.published = commit

    def remove(self) -> None:
        """Everything is done: the journal goes."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock, and leave no journal of nothing. What a thread still on its way then records is refused."""
        with self._lock:
            if not self.files and self.published is None:
                self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = CLOSED

    def _append(self, line: dict[str, Any]) -> None:
        try:
            with self._lock:
                os.lseek(self._file, 0, os.SEEK_END)
                os.write(self._file, (json.dumps(line) + "\n").encode())
                os.fsync(self._file)
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def _load(self, target: Target) -> bool:
        """Read what an earlier run left; return whether this run continues it."""
        raw = os.pread(self._file, os.fstat(self._file).st_size, 0)
        whole = raw.rfind(b"\n") + 1  # what follows the last newline was cut off by a kill
        if not whole:
            return False
        try:
            lines = [json.loads(line) for line in raw[:whole].splitlines()]
            earlier = Target(**lines[0])
            for line in lines[1:]:
                self._read_line(line)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise BadInput(f"{self.path}: is not a journal that this version can read; remove it") from None
        if earlier != target:
            if not self.files and self.published is None:
                return False  # nothing went up, so that nothing is lost
            raise BadInput(
                f"{self.path}: belongs to an unfinished upload to {earlier.repo} with other arguments or another "
                "source; repeat that command, or remove this file to start over"
            )
        os.ftruncate(self._file, whole)
        return True

    def _read_line(self, line: dict[str, Any]) -> None:
        if "published" in line:
            self.published = str(line["published"])
        else:
            uploaded = Uploaded(**line)
            self.files[uploaded.path] = uploaded

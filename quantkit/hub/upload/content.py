"""What a file holds, in the hashes that a repo's tree tells: sha256 of large files, git's sha1 of small ones."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import RunFailed
from quantkit.hub.repo_files import RemoteFile

# The Hub keeps no file above 10 MB outside of its large-file store, so that larger ones need no git hash.
GIT_HASH_MOST = 64 * 2**20
PIECE = 4 * 2**20


@dataclass(frozen=True)
class Content:
    """Bytes, sha256 and git's blob hash of a file, "" where the file is too large to be a plain blob."""

    size: int
    sha256: str
    git_sha1: str

    def equals(self, remote: RemoteFile) -> bool:
        """Whether the file in the repo holds these bytes."""
        same = remote.sha256 == self.sha256 if remote.sha256 is not None else remote.oid == self.git_sha1
        return remote.size == self.size and same


def content_of(data: bytes) -> Content:
    """The hashes of bytes in memory."""
    return Content(len(data), hashlib.sha256(data).hexdigest(), _git_hash(len(data), data).hexdigest())


def hash_file(path: Path, stopped: Callable[[], bool] = lambda: False) -> Content:
    """Read a whole file; OSError where that cannot be done, RunFailed when `stopped` says so on the way."""
    sha256 = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        git = _git_hash(size) if size <= GIT_HASH_MOST else None
        buffer = memoryview(bytearray(PIECE))
        while got := file.readinto(buffer):
            sha256.update(buffer[:got])
            if git is not None:
                git.update(buffer[:got])
            if stopped():
                raise RunFailed(f"{path}: not uploaded, the run was stopped; repeat the command to go on")
    return Content(size, sha256.hexdigest(), git.hexdigest() if git is not None else "")


def _git_hash(size: int, data: bytes = b"") -> hashlib._Hash:
    return hashlib.sha1(b"blob %d\0" % size + data, usedforsecurity=False)

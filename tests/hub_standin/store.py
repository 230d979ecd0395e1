"""Contents of files on the stand-in's disk, by sha256. Streams only: no file is ever in memory as a whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path

CHUNK = 1 << 20
_hashes: dict[tuple[str, int, int], str] = {}  # (path, size, mtime): sha256 of files already hashed in this process


class WrongChecksumError(Exception):
    """What came is not what its name says."""


def file_sha256(path: Path) -> str:
    """sha256 of a file, remembered while the file does not change."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        with path.open("rb") as file:
            _hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashes[key]


class Blobs:
    """A folder of contents by sha256, and of parts of contents that are not complete yet. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts_folder = folder / "parts"
        self._parts_folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._etags: dict[str, dict[int, str]] = {}
        self._temporary = 0

    def path(self, sha256: str) -> Path:
        return self.folder / sha256

    def has(self, sha256: str) -> bool:
        return self.path(sha256).exists()

    def size(self, sha256: str) -> int:
        return self.path(sha256).stat().st_size

    def add_file(self, source: Path) -> str:
        """Take in a local file without copying it where the disk allows that; returns its sha256."""
        sha256 = file_sha256(source)
        if not self.has(sha256):
            try:
                os.link(source.resolve(), self.path(sha256))
            except FileExistsError:
                pass
            except OSError:  # another file system
                shutil.copyfile(source, self.path(sha256))
        return sha256

    def receive(self, chunks: Iterable[bytes], sha256: str | None = None) -> str:
        """Store a content as it comes; returns its sha256.

        Raises:
            WrongChecksumError: it is not the `sha256` that was announced; nothing is stored.
        """
        with self._lock:
            self._temporary += 1
            temporary = self._parts_folder / f"incoming-{self._temporary}"
        digest = hashlib.sha256()
        try:
            with temporary.open("wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            found = digest.hexdigest()
            if sha256 is not None and found != sha256:
                raise WrongChecksumError(f"announced {sha256}, got {found}")
            temporary.replace(self.path(found))
        finally:
            temporary.unlink(missing_ok=True)
        return found

    def receive_part(self, sha256: str, offset: int, chunks: Iterable[bytes]) -> str:
        """Write one part of a content at its byte offset; returns the part's ETag."""
        path = self._parts_folder / sha256
        with self._lock:
            path.touch()
        checksum = 0
        with path.open("r+b") as file:
            file.seek(offset)
            for chunk in chunks:
                checksum = zlib.crc32(chunk, checksum)
                file.write(chunk)
        etag = f'"{checksum:08x}"'
        with self._lock:
            self._etags.setdefault(sha256, {})[offset] = etag
        return etag

    def complete(self, sha256: str, etags: dict[int, str]) -> None:
        """Make a content of its parts; `etags` by byte offset are what the client was told.

        Raises:
            WrongChecksumError: a part is missing or another one than announced, or the whole has another sha256.
        """
        path = self._parts_folder / sha256
        with self._lock:
            if self._etags.get(sha256, {}) != etags:
                raise WrongChecksumError(f"{sha256}: the parts are not those that were announced")
        if file_sha256(path) != sha256:
            raise WrongChecksumError(f"{sha256}: the parts make another content")
        path.replace(self.path(sha256))
        with self._lock:
            del self._etags[sha256]

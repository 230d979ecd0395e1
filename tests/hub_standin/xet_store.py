"""The content store of the stand-in's Xet mode: a folder that hf_xet itself reads and writes (`local://FOLDER`).

That address is an undocumented feature of hf_xet, good enough for tests. What was uploaded is found in the shard files
that hf_xet leaves there: after a 48-byte header each file has a header record, a record per segment (and one each for
verification, if flagged), and, if flagged, a metadata record with the sha256 of the content. All records have 48 bytes.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

RECORD = 48
HAS_VERIFICATION, HAS_METADATA = 1 << 31, 1 << 30
END_OF_FILES = b"\xff" * 32
TOKEN_SECONDS = 3600
WAIT_SECONDS = 60
T = TypeVar("T")


def hash_text(raw: bytes) -> str:
    """A 32-byte hash as Xet prints it: four little-endian 64-bit words."""
    return b"".join(raw[start : start + 8][::-1] for start in range(0, 32, 8)).hex()


def shard_files(shard: bytes) -> dict[str, tuple[str, int]]:
    """The files of a shard: sha256 -> (Xet hash, size)."""
    found: dict[str, tuple[str, int]] = {}
    at = RECORD
    while at + RECORD <= len(shard) and shard[at : at + 32] != END_OF_FILES:
        file_hash = shard[at : at + 32]
        flags, segments = struct.unpack_from("<II", shard, at + 32)
        at += RECORD
        size = sum(struct.unpack_from("<I", shard, at + 36 + RECORD * segment)[0] for segment in range(segments))
        at += RECORD * segments * (2 if flags & HAS_VERIFICATION else 1)
        if flags & HAS_METADATA:
            found[hash_text(shard[at : at + 32])] = hash_text(file_hash), size
            at += RECORD
    return found


def when_free(action: Callable[[], T]) -> T:
    """Do something with the store, which one process at a time may have open: clients are waited for."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return action()
        except RuntimeError as error:
            if "already open" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


class XetStore:
    """A local Xet store. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._read: set[str] = set()  # shards whose files are in _files
        self._files: dict[str, tuple[str, int]] = {}

    @property
    def url(self) -> str:
        return f"local://{self.folder}"

    def token(self) -> tuple[str, int]:
        """An access token and when it expires, in seconds since 1970; the local store does not check it."""
        return "standin-xet-token", int(time.time()) + TOKEN_SECONDS

    def find(self, sha256: str) -> tuple[str, int] | None:
        """Xet hash and size of a stored content."""
        with self._lock:
            if sha256 not in self._files:
                for shard in self.folder.glob("xet/xorbs/shards/*.mdb"):
                    if shard.name not in self._read:
                        self._read.add(shard.name)
                        self._files |= shard_files(shard.read_bytes())
            return self._files.get(sha256)

    def stored_bytes(self) -> int:
        """Bytes of contents on disk, after deduplication and compression."""
        paths = [path for path in self.folder.glob("xet/xorbs/xorbs/*") if path.suffix != ".tagset"]
        return sum(path.stat().st_size for path in paths)

    def add(self, source: Path, sha256: str) -> str:
        """Take in a local file; returns its Xet hash."""
        return when_free(lambda: self._add(source, sha256))

    def _add(self, source: Path, sha256: str) -> str:
        import hf_xet

        token, expiry = self.token()
        with hf_xet.XetSession().new_upload_commit(
            endpoint=self.url, token=token, token_expiry_unix_secs=expiry
        ) as commit:
            handle = commit.start_upload_file(str(source), sha256=sha256)
        return handle.result().xet_info.hash

    def extract(self, xet_hash: str, size: int, target: Path) -> None:
        """Write a stored content to a plain file."""
        when_free(lambda: self._extract(xet_hash, size, target))

    def _extract(self, xet_hash: str, size: int, target: Path) -> None:
        import hf_xet

        token, expiry = self.token()
        group = hf_xet.XetSession().new_file_download_group(
            endpoint=self.url, token=token, token_expiry_unix_secs=expiry
        )
        temporary = target.with_name(f"{target.name}.{threading.get_ident()}")
        with group:
            group.start_download_file(hf_xet.XetFileInfo(xet_hash, size), str(temporary))
        temporary.replace(target)

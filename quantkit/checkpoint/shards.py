"""Where the bytes of a checkpoint folder's shards are: in the folder itself, or with whoever serves them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from quantkit.checkpoint.header import TensorEntry, read_header

# Linux cuts a longer request to what the disk's readahead is, which is this unless somebody changed it.
READ_AHEAD = 128 * 2**10


class ShardFiles(Protocol):
    """The shards of one folder, named as its index names them. Used by many threads."""

    def has(self, shard: str) -> bool:
        """Whether there is such a shard."""
        ...

    def size(self, shard: str) -> int:
        """Bytes of a shard."""
        ...

    def header(self, shard: str) -> dict[str, TensorEntry]:
        """Its tensors, checked as by `read_header`; their paths are those that the shard would have in the folder."""
        ...

    def mark(self, shard: str) -> str:
        """What changes when the shard does."""
        ...

    def read_into(self, shard: str, view: memoryview, offset: int) -> int:
        """Read from byte `offset` on into `view`; return how many bytes it got: fewer than asked for, 0 at the end."""
        ...

    def will_need(self, shard: str, offset: int, nbytes: int) -> None:
        """These bytes are going to be read soon. Returns at once."""

    def expect(self, entries: Sequence[TensorEntry]) -> None:
        """These tensors are going to be read, about in this order."""

    def release(self, entries: Iterable[TensorEntry]) -> None:
        """These will not be read again."""

    def close_files(self) -> None:
        """Close what reading has opened; another read opens it again."""


class LocalShards:
    """Plain files in the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def has(self, shard: str) -> bool:
        return (self._folder / shard).is_file()

    def size(self, shard: str) -> int:
        return (self._folder / shard).stat().st_size

    def header(self, shard: str) -> dict[str, TensorEntry]:
        return read_header(self._folder / shard)

    def mark(self, shard: str) -> str:
        stat = (self._folder / shard).stat()
        return repr((stat.st_size, stat.st_mtime_ns))

    def read_into(self, shard: str, view: memoryview, offset: int) -> int:
        return os.preadv(self._descriptor(shard), [view], offset)

    def will_need(self, shard: str, offset: int, nbytes: int) -> None:
        read_ahead(self._descriptor(shard), offset, nbytes)

    def expect(self, entries: Sequence[TensorEntry]) -> None:
        """They are here."""

    def release(self, entries: Iterable[TensorEntry]) -> None:
        """They stay."""

    def _descriptor(self, shard: str) -> int:
        with self._lock:
            if shard not in self._open:
                self._open[shard] = os.open(self._folder / shard, os.O_RDONLY)
            return self._open[shard]

    def close_files(self) -> None:
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])


def read_ahead(descriptor: int, offset: int, nbytes: int) -> None:
    """Let the system read these bytes of a file into its cache, without waiting for them; where it can."""
    if hasattr(os, "posix_fadvise"):
        for start in range(offset, offset + nbytes, READ_AHEAD):
            length = min(READ_AHEAD, offset + nbytes - start)
            os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)


_served: dict[Path, ShardFiles] = {}


@contextmanager
def serve_shards(folder: Path, files: ShardFiles) -> Iterator[None]:
    """Inside of this context the shards of `folder` are `files`, not what is in it."""
    key = folder.resolve()
    before = _served.get(key)
    _served[key] = files
    try:
        yield
    finally:
        if before is None:
            del _served[key]
        else:
            _served[key] = before


def shards_of(folder: Path) -> ShardFiles:
    """The shards of `folder`."""
    return _served.get(folder.resolve()) or LocalShards(folder)

"""The shards of a Hub repository as they are needed: whole files ahead of the reader, within a bounded folder.

A shard of which at least a quarter is going to be read is downloaded, in the order in which its tensors are expected,
and deleted when the last of them was released. Everything else is read by HTTP range: so is a tensor whose shard has
no room now, which is why no reader ever waits for another one to finish.
"""

from __future__ import annotations

import enum
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from quantkit.checkpoint.header import TensorEntry, parse_header
from quantkit.checkpoint.shards import read_ahead
from quantkit.errors import QuantkitError
from quantkit.hub.client import redact
from quantkit.hub.download.fetch import Pause, Stopped, fetch_shard
from quantkit.hub.download.folder import SpoolFolder
from quantkit.hub.download.mirror import Mirror
from quantkit.hub.download.ranges import RangeReads
from quantkit.hub.repo_files import RemoteFile

DOWNLOADS = 2
# A shard is downloaded whole when at least this part of it is going to be read.
WORTH_WHOLE = 0.25
PAGE = 4096
# Blocks that the client's notes on a shard take, and the folder's own.
NOTES_BYTES = 16 * 1024
FOLDER_BYTES = 64 * 1024
# A download hears of the end between pieces of 10 MB, one by hf_xet never: it is left to end with the process.
CLOSE_SECONDS = 2.0


class _State(enum.Enum):
    AWAY = enum.auto()
    COMING = enum.auto()  # its room is taken
    HERE = enum.auto()


@dataclass
class _Shard:
    """What is known of one shard. `pending`: bytes of the tensors that are expected and not released, by name."""

    file: RemoteFile
    state: _State = _State.AWAY
    path: Path | None = None
    is_own: bool = True  # else the user's: read, never deleted
    descriptor: int = -1
    readers: int = 0
    pending: dict[str, int] = field(default_factory=dict)
    pending_bytes: int = 0
    ranged_bytes: int = 0  # of those, read by range
    is_done: bool = False  # all that was expected is released
    error: QuantkitError | None = None

    @property
    def room(self) -> int:
        """Disk that it takes."""
        return -(-self.file.size // PAGE) * PAGE + NOTES_BYTES

    @property
    def is_worth_whole(self) -> bool:
        return self.pending_bytes - self.ranged_bytes >= max(1, self.file.size * WORTH_WHOLE)


class Spool:
    """`ShardFiles` of a mirror, with at most `cache_size` bytes of disk for mirror and shards together.

    `pause` is what the mirror's files wait with; `close` ends it.
    """

    def __init__(self, mirror: Mirror, cache_size: int, pause: Pause) -> None:
        self._mirror = mirror
        self._pause = pause
        self._ranges = RangeReads(mirror.files)
        shards = {name: file for name, file in mirror.files.files.items() if name.endswith(".safetensors")}
        self._shards = {name: _Shard(file) for name, file in shards.items()}
        self._names = {mirror.folder / name: name for name in shards}
        self._budget = cache_size - mirror.disk_bytes() - FOLDER_BYTES
        self._used = 0
        self._order: dict[str, None] = {}  # expected, in the order of need
        self._urgent: dict[str, None] = {}  # a reader waits
        self._unchecked: list[str] = []
        self._over = False
        self._changed = threading.Condition()
        self._folder = SpoolFolder(mirror.root, shards)
        self._adopt()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(DOWNLOADS)]
        for thread in self._threads:
            thread.start()

    def has(self, shard: str) -> bool:
        return shard in self._shards

    def size(self, shard: str) -> int:
        return self._shards[shard].file.size

    def header(self, shard: str) -> dict[str, TensorEntry]:
        return parse_header(self._mirror.folder / shard, self._mirror.header(shard), self.size(shard))

    def mark(self, shard: str) -> str:
        file = self._shards[shard].file
        return file.sha256 or file.oid

    def read_into(self, shard: str, view: memoryview, offset: int) -> int:
        """Read from byte `offset` on into `view`; return how many bytes it got, 0 at the end.

        Raises RunFailed or BadInput when the shard cannot be had, Stopped after `close`.
        """
        entry = self._shards[shard]
        descriptor = self._begin_read(shard, entry)
        if descriptor is None:
            got = self._ranges.read_into(shard, view, offset)
            with self._changed:
                entry.ranged_bytes += got
            return got
        try:
            return os.preadv(descriptor, [view], offset)
        finally:
            with self._changed:
                entry.readers -= 1
                self._drop_if_done(shard, entry)

    def will_need(self, shard: str, offset: int, nbytes: int) -> None:
        """These bytes are going to be read soon. Returns at once."""
        entry = self._shards[shard]
        with self._changed:
            by_range = entry.state is _State.AWAY and not (entry.is_worth_whole and self._has_room(entry))
            if entry.state is _State.HERE:
                read_ahead(self._open(entry), offset, nbytes)
        if by_range:
            self._ranges.will_need(shard, offset, nbytes)

    def expect(self, entries: Sequence[TensorEntry]) -> None:
        """These tensors are going to be read, about in this order, and then released."""
        with self._changed:
            for tensor in entries:
                name = self._names[tensor.path]
                shard = self._shards[name]
                if not shard.pending:
                    shard.ranged_bytes, shard.is_done = 0, False
                if tensor.name not in shard.pending:
                    shard.pending[tensor.name] = tensor.nbytes
                    shard.pending_bytes += tensor.nbytes
                self._order.setdefault(name)
            self._changed.notify_all()

    def release(self, entries: Iterable[TensorEntry]) -> None:
        """These tensors will not be read again; a shard goes with its last one."""
        with self._changed:
            for tensor in entries:
                name = self._names[tensor.path]
                shard = self._shards[name]
                nbytes = shard.pending.pop(tensor.name, None)
                self._ranges.forget(name, tensor.offset)
                if nbytes is None:
                    continue
                shard.pending_bytes -= nbytes
                shard.ranged_bytes = max(0, shard.ranged_bytes - nbytes)
                if not shard.pending:
                    shard.is_done = True
                    self._order.pop(name)
                    self._drop_if_done(name, shard)
            self._changed.notify_all()

    def close_files(self) -> None:
        """Close what reading has opened; another read opens it again."""
        with self._changed:
            for shard in self._shards.values():
                if shard.readers == 0:
                    _close(shard)

    def close(self, *, keep: bool) -> None:
        """End all transfers; delete the downloaded shards unless they are to be kept for the next run."""
        with self._changed:
            self._over = True
            self._pause.end()
            self._changed.notify_all()
        self._ranges.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.close_files()
        if not any(thread.is_alive() for thread in self._threads):  # else it is locked until the process ends
            self._folder.close(keep=keep)

    def _adopt(self) -> None:
        """Take over what is on the disk: the user's own copies, and what an earlier run left in the folder."""
        present = set(self._folder.present())
        for name, shard in self._shards.items():
            copy = self._mirror.cached(name)
            if copy is not None:
                shard.state, shard.path, shard.is_own = _State.HERE, copy, False
            if name not in present:
                continue
            if copy is not None or self._used + shard.room > self._budget:
                self._folder.remove(name)
                continue
            self._used += shard.room
            shard.path = self._folder.path / name
            if self._folder.is_checked(name):
                shard.state = _State.HERE
            else:
                shard.state = _State.COMING
                self._unchecked.append(name)

    def _begin_read(self, name: str, shard: _Shard) -> int | None:
        """The descriptor to read from, counted as in use; None: read by range."""
        with self._changed:
            while True:
                if self._over:
                    raise Stopped(f"{name}: read after the end of the run")
                if shard.error is not None:
                    raise type(shard.error)(str(shard.error))
                if shard.state is _State.HERE:
                    shard.readers += 1
                    return self._open(shard)
                if shard.state is _State.AWAY:
                    if not (shard.is_worth_whole and self._has_room(shard)):
                        self._urgent.pop(name, None)
                        return None
                    self._urgent.setdefault(name)
                    self._changed.notify_all()
                self._changed.wait()

    def _open(self, shard: _Shard) -> int:
        if shard.descriptor < 0:
            assert shard.path is not None
            shard.descriptor = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC)
        return shard.descriptor

    def _drop_if_done(self, name: str, shard: _Shard) -> None:
        """Delete a shard whose last expected tensor was released, unless somebody is still reading."""
        if shard.is_done and shard.state is _State.HERE and shard.is_own and shard.readers == 0:
            self._drop(name, shard)

    def _drop(self, name: str, shard: _Shard) -> None:
        _close(shard)
        self._folder.remove(name)
        shard.state = _State.AWAY
        self._used -= shard.room
        self._changed.notify_all()

    def _idle(self) -> Iterator[tuple[str, _Shard]]:
        """Shards that nobody expects: of an earlier run, or released before they came."""
        for name, shard in self._shards.items():
            if shard.state is _State.HERE and shard.is_own and not shard.pending and shard.readers == 0:
                yield name, shard

    def _has_room(self, shard: _Shard) -> bool:
        return self._used - sum(idle.room for _, idle in self._idle()) + shard.room <= self._budget

    def _next(self) -> str | None:
        """The shard to fetch now, its room taken; None when there is none, or none for the one that is due."""
        if self._unchecked:
            return self._unchecked.pop(0)
        for name in [*self._urgent, *self._order]:
            shard = self._shards[name]
            if shard.state is not _State.AWAY or shard.error is not None or not shard.is_worth_whole:
                continue
            if self._has_room(shard):
                for idle_name, idle in list(self._idle()):
                    if self._used + shard.room > self._budget:
                        self._drop(idle_name, idle)
                shard.state = _State.COMING
                self._used += shard.room
                self._urgent.pop(name, None)
                return name
            if shard.room <= self._budget and name not in self._urgent:
                return None  # later ones must not take the room that it waits for
        return None

    def _work(self) -> None:
        """What a downloading thread does."""
        while True:
            with self._changed:
                while not self._over and (name := self._next()) is None:
                    self._changed.wait()
                if self._over:
                    return
            assert name is not None
            error = self._fetch(name)
            shard = self._shards[name]
            with self._changed:
                if error is None:
                    shard.state, shard.path = _State.HERE, self._folder.path / name
                else:
                    shard.state, shard.error = _State.AWAY, error
                    self._used -= shard.room
                self._changed.notify_all()

    def _fetch(self, name: str) -> QuantkitError | None:
        try:
            fetch_shard(self._mirror.files, name, self._folder, self._pause)
        except QuantkitError as error:
            return error
        except Exception as error:
            return QuantkitError(redact(f"{self._mirror.files.repo}: {name}: {type(error).__name__}: {error}"))
        return None


def _close(shard: _Shard) -> None:
    if shard.descriptor >= 0:
        with suppress(OSError):
            os.close(shard.descriptor)
        shard.descriptor = -1

"""What the tests of the download share: reading a checkpoint through whoever serves it, and the disk it takes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from quantkit.checkpoint.header import TensorEntry
from quantkit.checkpoint.index import Checkpoint, open_checkpoint


def in_order(checkpoint: Checkpoint) -> list[TensorEntry]:
    """All tensors as they lie in the shards."""
    return sorted(checkpoint.tensors.values(), key=lambda entry: (entry.path, entry.offset))


def read(checkpoint: Checkpoint, entry: TensorEntry) -> bytes:
    """The stored bytes of a tensor, from whoever serves the shards."""
    buffer = bytearray(entry.nbytes)
    view, done = memoryview(buffer), 0
    while done < entry.nbytes:
        got = checkpoint.files.read_into(checkpoint.shard_name(entry.path), view[done:], entry.offset + done)
        assert got > 0
        done += got
    return bytes(buffer)


def read_all(folder: Path, original: Path) -> None:
    """Expect everything, read it tensor by tensor, release each at once, and compare with a local copy."""
    checkpoint = open_checkpoint(folder)
    entries = in_order(checkpoint)
    checkpoint.files.expect(entries)
    assert_equal(checkpoint, entries, original)


def assert_equal(checkpoint: Checkpoint, entries: Iterable[TensorEntry], original: Path) -> None:
    """Read and release tensors; each must have the bytes of the local copy."""
    local = open_checkpoint(original)
    for entry in entries:
        twin = local.tensors[entry.name]
        assert (twin.dtype, twin.shape, twin.offset) == (entry.dtype, entry.shape, entry.offset)
        assert read(checkpoint, entry) == read(local, twin), entry.name
        checkpoint.files.release([entry])


def disk_bytes(folder: Path) -> int:
    """Blocks that everything below a folder takes; files may come and go meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for path in (parent, *(os.path.join(parent, name) for name in names)):
            with suppress(FileNotFoundError):
                total += os.lstat(path).st_blocks * 512
    return total


class Peak:
    """The most that a folder took while it was watched."""

    value = 0


@contextmanager
def watched(folder: Path) -> Iterator[Peak]:
    """Look at a folder's size all the time."""
    peak, over = Peak(), threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            peak.value = max(peak.value, disk_bytes(folder))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def spooled(root: Path) -> list[str]:
    """Names of the shards in the spool folders below `root`."""
    return sorted(path.name for path in root.rglob("weights-*/*.safetensors"))

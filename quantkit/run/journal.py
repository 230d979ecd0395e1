"""What is done, kept beside the output so that a killed run goes on where it was.

`OUT.journal` is a text file: a first line of JSON that says what run this is, then one line per finished item, and
last the word "complete". A line counts once it ends in a newline. Items are written down in groups, after their
bytes were forced to disk, so even a power cut leaves no item in the journal whose bytes are missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from quantkit.errors import BadInput, QuantkitError

COMPLETE = "complete"
SYNC_SECONDS = 2.0
ITEM_NUMBER = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True)
class RunIdentity:
    """What makes two runs the same: `output` covers arguments, versions and layout; `shards` the source's files."""

    output: str
    shards: dict[str, str]
    summary: str

    def digest(self) -> str:
        """SHA-256 of what decides the output's bytes."""
        return hashlib.sha256(repr((self.output, sorted(self.shards.items()))).encode()).hexdigest()


class Journal:
    """The journal of one output, locked for as long as it is open. Thread-safe."""

    def __init__(self, path: Path, identity: RunIdentity, *, restart: bool) -> None:
        """Open or begin the journal at `path`; `done` holds the finished items' numbers.

        A journal of another run is refused with BadInput, or thrown away when `restart` is set. Where only some
        shards of the source were replaced (a damaged download, fetched again), `changed` names them and the run goes
        on; the caller redoes their items.
        """
        self.path = path
        self.done: set[int] = set()
        self.changed: set[str] = set()
        self.complete = False
        self._identity = identity
        self._pending: list[int] = []
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._committing = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise BadInput(f"{path}: another run is writing this output; wait for it or stop it") from None
        try:
            self.resumed = self._load(identity, restart)
            if not self.resumed:
                self._rewrite()
        except BaseException:
            os.close(self._file)
            raise

    def record(self, number: int) -> None:
        """Note that item `number` is written. Raises what went wrong while earlier ones were forced to disk."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._pending.append(number)

    @contextmanager
    def kept_on_disk(self, sync_output: Callable[[], None]) -> Iterator[None]:
        """Inside of this context output and journal are forced to disk every SYNC_SECONDS, and once more at the end.

        A thread of its own does it, so that nobody who records an item waits for the disk.
        """
        ended = threading.Event()

        def keep() -> None:
            while not ended.wait(SYNC_SECONDS):
                try:
                    self.flush(sync_output)
                except BaseException:  # is remembered, and raised by whoever comes next
                    return

        keeper = threading.Thread(target=keep, daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            self.flush(sync_output)

    def flush(self, sync_output: Callable[[], None]) -> None:
        """Force everything recorded so far to disk. Once that failed it fails for good.

        The system tells of lost bytes once: a second attempt might look like success.
        """
        with self._committing:
            if self._failure is not None:
                raise self._failure
            with self._lock:
                pending, self._pending = self._pending, []
            try:
                if pending:
                    sync_output()
                    self._append("".join(f"{number}\n" for number in pending))
            except BaseException as error:
                self._failure = error
                raise

    def mark_complete(self) -> None:
        """Say that every item is on disk: from here on only the renaming to final names is left."""
        self._append(f"{COMPLETE}\n")
        self.complete = True

    def close(self, *, remove: bool = False) -> None:
        """Release the lock; with `remove`, the run is over and the journal goes."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def _append(self, text: str) -> None:
        with self._lock:
            end, rest = os.lseek(self._file, 0, os.SEEK_END), text.encode()
            try:
                while rest:  # a disk that fills up may take a part
                    rest = rest[os.write(self._file, rest) :]
                os.fsync(self._file)
            except OSError as error:
                # Or the next line would go on where this one stops and read as another item's number.
                os.ftruncate(self._file, end)
                raise QuantkitError(
                    f"{self.path}: cannot be written ({error.strerror}); mend that and repeat the same command"
                ) from None

    def _load(self, identity: RunIdentity, restart: bool) -> bool:
        """Read what an earlier run left; return whether this run continues it."""
        raw = os.pread(self._file, os.fstat(self._file).st_size, 0)
        whole = raw.rfind(b"\n") + 1  # what follows the last newline was cut off by a kill
        lines = raw[:whole].decode(errors="replace").split("\n")[:-1]
        if not lines:
            return False
        try:
            earlier = RunIdentity(**json.loads(lines[0]))
            shards = dict(earlier.shards)
        except (ValueError, TypeError, RecursionError):
            shards = {}
            earlier = RunIdentity("", {}, "a run that this version cannot read")
        kept = {shard for shard, mark in shards.items() if identity.shards.get(shard) == mark}
        if earlier.output != identity.output or not kept:
            if restart:
                return False
            raise BadInput(
                f"{self.path}: belongs to an unfinished run with other arguments, versions or another source "
                f"({earlier.summary}); repeat that command, or start over with --force"
            )
        # Or the next line would go on where the cut one stops and read as another item's number.
        os.ftruncate(self._file, whole)
        self.changed = set(identity.shards) - kept
        for line in lines[1:]:
            if line == COMPLETE:
                self.complete = True
            elif ITEM_NUMBER.fullmatch(line):
                self.done.add(int(line))
        self.complete = self.complete and not self.changed
        return True

    def _rewrite(self) -> None:
        lines = [json.dumps(asdict(self._identity)), *map(str, sorted(self.done))]
        os.ftruncate(self._file, 0)
        self._append("".join(f"{line}\n" for line in lines))

    def forget(self, numbers: set[int]) -> None:
        """Take `numbers` out of what is done and write the rest down again."""
        self.done -= numbers
        self._rewrite()

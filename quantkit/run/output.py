"""Output files that grow under a `.partial` name and get their final names together, once complete."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from quantkit.arrays import Bytes
from quantkit.errors import BadInput
from quantkit.files import cannot_write, partial_path
from quantkit.formats.gguf.read import PART_NAME
from quantkit.run.finished import FinishedFiles
from quantkit.run.output_file import OutputFile
from quantkit.run.sizes import format_size


def check_folder(out: Path) -> None:
    """Refuse an output path whose folder is missing or not writable, or that is a folder itself."""
    folder = out.parent
    if not folder.is_dir():
        raise BadInput(f"{folder}: folder of the output does not exist; create it")
    if PART_NAME.fullmatch(out.name):
        raise BadInput(
            f"{out}: looks like one part of a split model; give a plain name, parts are numbered by quantkit"
        )
    if not out.name:
        raise BadInput(f"{out}: is a folder; give the name of a file to write")
    for path in (out, partial_path(out), out.with_name(out.name + ".journal")):
        try:
            usable = path.is_file() or not path.exists()
        except OSError as error:
            raise BadInput(f"{path}: cannot be a file's name here ({error.strerror})") from None
        if not usable:
            raise BadInput(f"{path}: is a folder or a device; give the name of a file to write")
    if not os.access(folder, os.W_OK):
        raise BadInput(f"{folder}: folder of the output is not writable")


def refuse_same(out: Path, inputs: Mapping[str, Path | None]) -> None:
    """Refuse an output that is one of the run's inputs (option: file), --force or not."""
    for option, path in inputs.items():
        if path is not None and path.exists() and out.exists() and out.samefile(path):
            raise BadInput(f"{out}: is the file of {option}; give another name with -o")


def protect_source(source: Path, parts: Sequence[OutputFile]) -> None:
    """Refuse to replace a file of the checkpoint folder `source` that is not a GGUF, --force or not."""
    for part in parts:
        inside = part.path.parent.resolve() == source.resolve()
        if inside and part.path.exists() and part.path.suffix != ".gguf":
            raise BadInput(f"{part.path}: belongs to the source; give another name with -o")


def check_disk(parts: Sequence[OutputFile], folder: Path, beside: int = 0, *, taken: bool = False) -> None:
    """Raise BadInput when the disk of `folder` cannot take what is still missing of `parts`, and `beside` bytes.

    Of parts that are `taken` away when complete, two are there at once.
    """
    missing = []
    for part in parts:
        path = partial_path(part.path)
        missing.append(part.size - (path.stat().st_blocks * 512 if path.is_file() else 0))
    needed = beside + sum(sorted(missing)[-2:] if taken else missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BadInput(
            f"{folder}: the output still needs {format_size(needed)} and {format_size(free)} are free; "
            "free space or write to another disk"
        )


def holds_part(path: Path, part: OutputFile) -> bool:
    """Whether the file `path` is one that a run began, or ended, for `part`: of its size, with its header."""
    if not path.is_file() or path.stat().st_size != part.size:
        return False
    with path.open("rb") as file:
        return file.read(len(part.header)) == part.header


class OutputFiles:
    """The open partial files of all parts. With `finished` those that are complete are handed over and go away."""

    def __init__(self, parts: Sequence[OutputFile], finished: FinishedFiles | None = None) -> None:
        """Existing bytes of an earlier run stay. A part gets its file when something is written into it."""
        self.parts = parts
        self._finished = finished
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()
        self._beginning = threading.Lock()
        try:
            for number, part in enumerate(parts):
                if not self._is_held(number) and (finished is None or partial_path(part.path).exists()):
                    self._begin(number)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> OutputFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def write(self, part: int, offset: int, packed: Bytes) -> None:
        """Write `packed` at `offset` of part `part`. Thread-safe for ranges that do not overlap."""
        if part not in self._files:
            with self._beginning:
                if part not in self._files:
                    if self._finished is not None:
                        self._finished.wait_for_room(self.parts[part].path)
                    self._begin(part)
        self._write(self._files[part], packed.reshape(-1).data, offset, self.parts[part].path)

    def sync(self) -> None:
        """Force everything written so far to disk."""
        with self._lock:
            for part, file in self._files.items():
                self._sync(part, file)

    def complete(self, part: int) -> None:
        """Everything of a part is written: it may be taken."""
        if self._finished is None or self._is_held(part):
            return
        with self._lock:
            file = self._files.pop(part)
        self._sync(part, file)
        os.close(file)
        path = self.parts[part].path
        self._finished.take(path, partial_path(path))

    def complete_through(self, stage: int, stages: Mapping[str, int]) -> None:
        """Everything up to `stage` is written, which `stages` gives for every tensor: parts without later ones may be
        taken.
        """
        for number, part in enumerate(self.parts):
            if number in self._files and all(stages[name] <= stage for name in part.offsets):
                self.complete(number)

    def _is_held(self, part: int) -> bool:
        return self._finished is not None and self._finished.held(self.parts[part].path)

    def _begin(self, number: int) -> None:
        """Create the file of a part where it is missing, and write its header."""
        part = self.parts[number]
        try:
            file = os.open(partial_path(part.path), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(part.path, error) from None
        try:
            # Held until the end, also when the file has its final name: no other run may write into it.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, part.size)
            self._write(file, memoryview(part.header), 0, part.path)
        except BaseException as error:
            os.close(file)
            if isinstance(error, BlockingIOError):
                raise BadInput(
                    f"{partial_path(part.path)}: another run is writing this output; wait for it or stop it"
                ) from None
            if isinstance(error, OSError):
                raise cannot_write(part.path, error) from None
            raise
        with self._lock:
            self._files[number] = file

    def _sync(self, part: int, file: int) -> None:
        try:
            os.fsync(file)
        except OSError as error:
            raise cannot_write(self.parts[part].path, error) from None

    @staticmethod
    def _write(file: int, view: memoryview, offset: int, path: Path) -> None:
        done = 0
        while done < len(view):
            try:
                done += os.pwrite(file, view[done:], offset + done)
            except OSError as error:
                raise cannot_write(path, error) from None


def publish(parts: Sequence[OutputFile]) -> None:
    """Give complete parts their final names. Parts that an interrupted earlier call renamed already are left alone."""
    for part in parts:
        if partial_path(part.path).exists():
            os.replace(partial_path(part.path), part.path)
    folder = os.open(parts[0].path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

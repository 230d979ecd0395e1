"""Who takes output files away while a run goes on: finished ones go up to the Hub, and the disk never holds many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from quantkit.files import partial_path
from quantkit.run.output_file import OutputFile


class FinishedFiles(Protocol):
    """Takes finished output files. Every call raises what went wrong with an earlier file. Used by many threads."""

    def begin(self, files: Sequence[OutputFile], identity: str, *, restart: bool) -> None:
        """These files are coming; `identity` stands for everything that decides their bytes.

        What an earlier run with another identity left is refused with BadInput, or thrown away with `restart`.
        """

    def held(self, path: Path) -> bool:
        """Whether the file with this final path was taken in an earlier run: it is not made again."""
        ...

    def wait_for_room(self, path: Path) -> None:
        """Return once the file `path` may be begun: when at most one other is begun and still here, or when none of
        those is complete, so that waiting would not help.
        """

    def take(self, path: Path, partial: Path) -> None:
        """Take the complete file `partial`, whose final path would be `path`, away. Returns at once."""

    def complete(self, files: Sequence[OutputFile], beside: Sequence[Path]) -> None:
        """All `files` were given, now or earlier: see that they are safe, add the small ones `beside`, and end."""


@contextmanager
def header_copies(files: Sequence[OutputFile], folder: Path) -> Iterator[list[Path]]:
    """Files of the size and name of `files` with their headers alone: what reads headers can still be asked.

    They take next to no room, and are gone afterwards.
    """
    paths = [folder / file.path.name for file in files]
    try:
        for path, file in zip(paths, files, strict=True):
            with path.open("wb") as copy:
                copy.write(file.header)
                copy.truncate(file.size)
        yield paths
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def is_there(file: OutputFile, finished: FinishedFiles | None) -> bool:
    """Whether the file an earlier run has made, wholly or in part, is still to be had."""
    if finished is not None and finished.held(file.path):
        return True
    return any(path.is_file() and path.stat().st_size == file.size for path in (partial_path(file.path), file.path))

"""Sources on the Hub, and outputs that go there: what the commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.errors import BadInput
from quantkit.hub.address import DEFAULT_SOURCE, parse_address

if TYPE_CHECKING:
    from quantkit.hub.pushed import PushedOutput

CACHE_SIZE = "12G"
SOURCE_RECORD = ".source.json"


@contextmanager
def opened(source: Path | None, cache_size: str = CACHE_SIZE, *, quiet: bool = False) -> Iterator[Path]:
    """The folder to read a checkpoint from: a local one, or the mirror of a repo, by default the official one's."""
    from quantkit.run.sizes import parse_size

    where = source if source is not None else Path(DEFAULT_SOURCE)
    room = parse_size(cache_size, "--cache-size")
    if parse_address(str(where)) is None:
        yield where
        return
    from quantkit.hub.download.source import open_source

    with open_source(where, room, quiet=quiet) as folder:
        yield folder


def note_source(folder: Path, path: Path) -> None:
    """Write down in the file `path` which commit of which repo the checkpoint `folder` is, if it is one."""
    # Only then: a local checkpoint must not pay for the Hub's client in memory.
    if (folder.parent / "source.json").is_file():
        from quantkit.hub.download import mirror

        mirror.note_source(folder, path)


@contextmanager
def pushed(
    repo: str | None, out: Path, source: Path, *, public: bool, imatrix: Path | None = None
) -> Iterator[PushedOutput | None]:
    """What takes the finished files of the output `out` to `repo`; None without one."""
    if repo is None:
        if public:
            raise BadInput("--public: is for --push; add that or drop it")
        yield None
        return
    from quantkit.hub.pushed import PushedOutput

    with PushedOutput(repo, out, source, public=public, imatrix=imatrix) as finished:
        yield finished

"""A run whose output goes straight to a repo of the Hub: finished files one by one, in the end card and licence."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import typer

from quantkit.errors import BadInput
from quantkit.files import cannot_write, partial_path
from quantkit.hub.card import RECORDS, license_findings
from quantkit.hub.card.int4_facts import family_member
from quantkit.hub.download.mirror import note_source, source_record
from quantkit.hub.publish import Publication, Wanted, prepare
from quantkit.hub.upload.origin import RECORD_NAME, stem
from quantkit.hub.upload.push import Push
from quantkit.run.finished import header_copies
from quantkit.run.output_file import OutputFile

JOURNAL = ".push"
LICENCE = "LICENSE"
GGUF = ".gguf"
CONFIG = "config.json"


class PushedOutput:
    """Takes the finished files of one run, see `FinishedFiles`; a context manager."""

    def __init__(self, repo: str, out: Path, source: Path, *, public: bool, imatrix: Path | None = None) -> None:
        """`out` is the output's path without a push, `source` the checkpoint folder whose licence goes along."""
        self._repo = repo
        self._out = out
        self._source = source
        self._licence = source / LICENCE
        self._public = public
        self._imatrix = imatrix
        self._push: Push | None = None
        self._open = ExitStack()
        self._commit = ""

    def __enter__(self) -> PushedOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def begin(self, files: Sequence[OutputFile], identity: str, *, restart: bool) -> None:
        """Look at the repo, the token, the licence and, as far as it is known, the card, before anything is made."""
        if not self._licence.is_file():
            raise BadInput(
                f"{self._source.name}: has no {LICENCE}, without which nothing is published; make the files without "
                "--push and give the model's own licence to `quantkit publish --license`"
            )
        for finding in license_findings(self._licence):
            raise BadInput(finding)
        journal = self._out.with_name(self._out.name + JOURNAL)
        push = Push(self._repo, journal, name=self._out.name, identity=identity, restart=restart)
        self._push = self._open.enter_context(push)
        for line in push.preflight({file.path: file.size for file in files}):
            print(line, file=sys.stderr)
        if source_record(self._source) is None and family_member(self._out.name) is None:
            raise BadInput(
                f"{self._out.name}: the card has to name the original, and neither this name nor the source tells it; "
                "give the source as ORG/NAME, or an output named MiniMax-M2.7-..."
            )
        # What could not be shown in the end is refused now.
        if _is_gguf(files):
            with self._described(files, []):
                pass
        else:  # a checkpoint has not said yet what it is
            self._refuse_shared_repo()

    def _refuse_shared_repo(self) -> None:
        """Refuse to bring a checkpoint where another model is: its config.json is the repo's."""
        repository = self._running.repository
        main = repository.state()
        if main is None or f"{RECORDS}/{self._out.name}.json" in main.files:
            return  # the latter: killed behind the last commit
        other = next((path for path in main.files if path == CONFIG or path.endswith(GGUF)), None)
        if other is not None:
            raise BadInput(f"{repository.repo}/{other}: is there already; a checkpoint needs a repo of its own")

    def held(self, path: Path) -> bool:
        """Whether an earlier run brought the file there."""
        return self._running.held(path)

    def wait_for_room(self, path: Path) -> None:
        """Wait until the disk has room for another file."""
        self._running.wait_for_room(path)

    def take(self, path: Path, partial: Path) -> None:
        """Upload a file, then delete it here."""
        self._running.take(path, partial)

    def complete(self, files: Sequence[OutputFile], beside: Sequence[Path]) -> None:
        """Wait for the uploads, then show them in one commit with the card, the licence and the files `beside`."""
        self._running.finish(file.path for file in files)
        with self._described(files, beside) as publication:
            names = ", ".join(one.name for one in publication.facts)
            self._commit = self._running.finalize(publication.small, f"Add {names}", public=self._public)
        for path in beside:
            if partial_path(self._out) not in path.parents:
                path.unlink(missing_ok=True)

    @contextmanager
    def _described(self, files: Sequence[OutputFile], beside: Sequence[Path]) -> Iterator[Publication]:
        """What will be said in the repo of the model that `files` make up, out of headers and the files `beside`."""
        folder = self._out.resolve().with_name(f"{self._out.name}{JOURNAL}.card")  # the journal's lock is for it too
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        try:
            folder.mkdir()
            is_gguf = _is_gguf(files)
            model = folder if is_gguf else folder / self._out.name
            model.mkdir(exist_ok=True)
            for path in beside:
                shutil.copyfile(path, model / path.name)
            with header_copies(files, model) as copies:
                for copy in copies:
                    note_source(self._source, model / (f"{stem(copy)}.{RECORD_NAME}" if is_gguf else RECORD_NAME))
                paths = tuple(copies) if is_gguf else (model,)
                # Nobody can have measured what is not on any disk yet.
                wanted = Wanted(paths, self._repo, imatrix=self._imatrix, licence=self._licence, unverified=True)
                yield prepare(wanted, headers_only=True)
        except OSError as error:
            raise cannot_write(self._out, error) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def as_json(self) -> dict[str, Any]:
        """What became of it."""
        return {
            "pushed_to": self._running.repository.url,
            "commit": self._commit,
            "uploaded_bytes": self._running.sent_bytes,
            "public": self._public,
        }

    def print(self) -> None:
        """Say where it is."""
        shown = "public" if self._public else "private; look at it, then make it public"
        typer.echo(f"{self._running.repository.url} ({shown})")

    @property
    def _running(self) -> Push:
        assert self._push is not None, "begin comes first"
        return self._push


def _is_gguf(files: Sequence[OutputFile]) -> bool:
    return files[0].path.suffix == GGUF

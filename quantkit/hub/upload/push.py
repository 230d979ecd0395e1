"""Uploading while files are still being made: one thread that sends what is complete, checks it, and deletes it.

Files go to a staging branch, each in a commit of its own, so that main shows nothing of a run until `finalize` brings
everything there in one commit. The journal says what is up; what it says is believed only where the repo confirms it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType

from quantkit.errors import RunFailed
from quantkit.files import partial_path
from quantkit.formats.gguf.read import PART_NAME
from quantkit.hub.client import quiet
from quantkit.hub.preflight import check_repo_name, check_sizes, check_token, storage_line
from quantkit.hub.repo_files import RemoteFile
from quantkit.hub.upload.content import Content, hash_file
from quantkit.hub.upload.journal import PushJournal, Target, Uploaded
from quantkit.hub.upload.repository import MAIN, Repository, State
from quantkit.hub.upload.to_main import bring_to_main, refuse_other, taken

STAGING = "quantkit-staging-"
# Files of a run that may lie on the disk at a time: one being written, one waiting or on its way up.
FILES_ON_DISK = 2


def place_in_repo(path: Path) -> str:
    """Where a finished file goes: a part of a split GGUF into its quant's own folder, everything else to the top."""
    match = PART_NAME.fullmatch(path.name)
    return path.name if match is None else f"{match['prefix']}/{path.name}"


class Push:
    """The finished files of one run on their way to a repo; a context manager. See run/finished.py for the protocol.

    Thread-safe. Whatever the uploading thread meets is raised by every later call. Leaving the context by an exception
    stops the upload at once; the journal keeps what is up.
    """

    def __init__(
        self,
        repo: str,
        journal: Path,
        *,
        name: str,
        identity: str,
        place: Callable[[Path], str] = place_in_repo,
        keep: bool = False,
        restart: bool = False,
    ) -> None:
        """Begin or go on with the push of `name`, which also names the staging branch.

        `identity` stands for everything that decides the files' bytes: a journal of another one is refused, or thrown
        away with `restart`. `place` says where in the repo the file of a final path goes. With `keep`, local files
        are not deleted, and one that changed since it went up is sent again.
        """
        self.repository = Repository(repo)
        self.branch = STAGING + hashlib.sha256(name.encode()).hexdigest()[:8]
        self.sent_bytes = 0
        self._place = place
        self._keep = keep
        self._journal = PushJournal(journal, Target(repo, name, identity), restart=restart)
        self._quiet = quiet()
        self._changed = threading.Condition()
        self._queue: deque[tuple[Path, Path]] = deque()
        self._on_disk: set[Path] = set()
        self._wanted: dict[str, Uploaded] = {}
        self._states: dict[str, State | None] = {}
        self._lookup = threading.Lock()
        self._error: BaseException | None = None
        self._stopped = False
        self._opened = False
        self._finalized = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Push:
        self._quiet.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread is not None and error is None:
            self._thread.join()
        self._quiet.__exit__(None, None, None)
        if self._finalized and error is None:  # by now the run has removed its own journal: killed before, it goes on
            self._journal.remove()
        self._journal.close()

    def preflight(self, planned: Mapping[Path, int]) -> list[str]:
        """Refuse what cannot work before anything is made; return what should be said. Nothing is written on the Hub.

        `planned` are the final paths and bytes of the files to come. Checked are the repo's name, the token's rights,
        the sizes, and that no place is taken on main by what this run did not upload.
        """
        repo = self.repository.repo
        check_repo_name(repo)
        sizes = {self._place(path): size for path, size in planned.items()}
        lines = check_sizes(sizes)
        account = check_token(repo)
        main = self._state(MAIN)
        for place in sizes:
            there = main.files.get(place) if main is not None else None
            if there is not None and not _confirms(there, self._journal.files.get(place)):
                raise taken(repo, place)
        line = storage_line(repo, sum(sizes.values()), account) if main is None or main.private else None
        return lines + ([line] if line is not None else [])

    def held(self, path: Path) -> bool:
        """Whether the file with this final path is up already: the journal says so and the repo confirms it."""
        self._raise_error()
        place = self._place(path)
        uploaded = self._journal.files.get(place)
        if uploaded is None or not any(_confirms(there, uploaded) for there in self._there(place)):
            return False
        if self._keep:
            stat = path.stat()
            if (stat.st_size, stat.st_mtime_ns) != (uploaded.size, uploaded.mtime_ns):
                return False
        else:
            partial_path(path).unlink(missing_ok=True)  # killed between journal and deletion
        with self._changed:
            self._wanted[place] = uploaded
        return True

    def present(self, path: Path, content: Content) -> None:
        """Say that main holds the file with this final path; `finalize` checks it with the others."""
        place = self._place(path)
        main = self._state(MAIN)
        oid = main.files[place].oid if main is not None else ""
        with self._changed:
            self._wanted[place] = Uploaded(place, content.size, content.sha256, oid, "", path.stat().st_mtime_ns)

    def wait_for_room(self, path: Path) -> None:
        """Return once the file `path` may be begun; it counts from then on.

        That is when at most one other is begun and still here, or when none of those is complete, so that waiting
        would not help.
        """
        with self._changed:
            while True:
                self._raise_error()
                if len(self._on_disk - {path}) < FILES_ON_DISK or not self._queue:
                    self._on_disk.add(path)
                    return
                self._changed.wait()

    def take(self, path: Path, partial: Path) -> None:
        """Upload `partial`, complete and on the disk, as the file of final path `path`; returns at once."""
        with self._changed:
            self._raise_error()
            self._on_disk.add(path)
            self._queue.append((path, partial))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def finish(self, paths: Iterable[Path] = ()) -> None:
        """Wait until everything taken is up and checked. The files with the final `paths` must be among it."""
        with self._changed:
            while self._queue and self._error is None:
                self._changed.wait()
            self._raise_error()
            for place in map(self._place, paths):
                if place not in self._wanted:
                    raise RunFailed(f"{self.repository.repo}/{place}: did not go up; repeat the command to go on")

    def finalize(
        self, small_files: Mapping[str, bytes | Path], message: str, *, tag: str | None = None, public: bool = False
    ) -> str:
        """Bring everything to main in one commit, then tag it, then show it if `public`; return the commit.

        `small_files` are placed by their names in the repo and belong to the commit: README.md, LICENSE, reports,
        configuration. Repeatable after a kill at any moment: the journal goes at the very end.
        """
        self.finish()
        commit = bring_to_main(
            self.repository,
            self._journal,
            self.branch,
            self._wanted,
            small_files,
            message=message,
            tag=tag,
            public=public,
        )
        self._finalized = True
        return commit

    def _work(self) -> None:
        try:
            while True:
                with self._changed:
                    while not self._queue and not self._stopped:
                        self._changed.wait()
                    if self._stopped:
                        return
                    path, partial = self._queue[0]
                self._upload(path, partial)
                with self._changed:
                    self._queue.popleft()
                    self._on_disk.discard(path)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _upload(self, path: Path, partial: Path) -> None:
        place = self._place(path)
        mtime = partial.stat().st_mtime_ns
        content = hash_file(partial, lambda: self._stopped)
        there = next((one for one in self._there(place) if content.equals(one)), None)
        if there is None:
            commit, there = self._send(place, partial, content)
        else:
            commit = ""  # killed between commit and journal, or published before
        uploaded = Uploaded(place, content.size, content.sha256, there.oid, commit, mtime)
        self._journal.record(uploaded)
        with self._changed:
            self._wanted[place] = uploaded
        if not self._keep:
            partial.unlink()

    def _send(self, place: str, partial: Path, content: Content) -> tuple[str, RemoteFile]:
        main = self._state(MAIN)
        refuse_other(self.repository.repo, place, main.files.get(place) if main is not None else None, content)
        if not self._opened:
            self.repository.create()
            self.repository.create_branch(self.branch)
            self._opened = True
        sent = self.repository.put(place, partial, content, self.branch)
        self.sent_bytes += content.size
        return sent

    def _there(self, place: str) -> list[RemoteFile]:
        """What staging and main hold at a place, as they were when this run first looked."""
        states = (self._state(self.branch), self._state(MAIN))
        return [state.files[place] for state in states if state is not None and place in state.files]

    def _state(self, branch: str) -> State | None:
        with self._lookup:
            if branch not in self._states:
                self._states[branch] = self.repository.state(branch)
            return self._states[branch]

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
        if self._stopped:
            raise RunFailed(f"{self.repository.repo}: the upload was stopped; repeat the command to go on")


def _confirms(there: RemoteFile, uploaded: Uploaded | None) -> bool:
    if uploaded is None or there.size != uploaded.size:
        return False
    return there.sha256 == uploaded.sha256 if there.sha256 is not None else there.oid == uploaded.oid

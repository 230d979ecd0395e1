"""The calls to the Hub that an upload makes, all of them repeatable: what is done already is seen, not done again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from quantkit.errors import BadInput, QuantkitError
from quantkit.hub.client import api, call, redact
from quantkit.hub.repo_files import RemoteFile
from quantkit.hub.upload.content import Content

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy
    from huggingface_hub.hf_api import RepoFile, RepoFolder

MAIN = "main"
PATHS_PER_QUESTION = 500
PRECONDITION_FAILED = 412

T = TypeVar("T")


@dataclass(frozen=True)
class State:
    """What a branch held at one moment: its newest commit, the files, and whether the repo is private."""

    commit: str
    files: Mapping[str, RemoteFile]
    private: bool


class Repository:
    """One model repo, as an upload sees it. Thread-safe."""

    def __init__(self, repo: str, *, attempts: int = 6) -> None:
        """`attempts` at every call before the network counts as gone."""
        self.repo = repo
        self._api = api()
        self._attempts = attempts

    @property
    def url(self) -> str:
        """Its page."""
        return f"{self._api.endpoint}/{self.repo}"

    def state(self, revision: str = MAIN) -> State | None:
        """The branch, tag or commit `revision`, or None where there is no such repo or revision."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        def ask() -> State | None:
            try:
                info = self._api.model_info(self.repo, revision=revision)
                listed = list(self._api.list_repo_tree(self.repo, recursive=True, revision=info.sha))
            except GatedRepoError:
                raise
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None
            return State(str(info.sha), _by_path(listed), bool(info.private))

        return self._call("", ask)

    def create(self) -> None:
        """Create the repo, private; one that exists stays as it is."""
        self._call("", lambda: self._api.create_repo(self.repo, private=True, exist_ok=True))

    def create_branch(self, branch: str) -> None:
        """Begin a branch at main, unless there is one of this name."""
        self._call("", lambda: self._api.create_branch(self.repo, branch=branch, exist_ok=True))

    def delete_branch(self, branch: str) -> None:
        """Remove a branch; one that is gone is no trouble."""

        def delete() -> None:
            if branch in self._refs().branches:
                self._api.delete_branch(self.repo, branch=branch)

        self._call("", delete)

    def tag(self, name: str, commit: str) -> None:
        """Name a commit; a tag of this name on another commit is refused."""

        def put() -> None:
            at = self._refs().tags.get(name)
            if at is None:
                self._api.create_tag(self.repo, tag=name, revision=commit)
            elif at != commit:
                raise BadInput(f"{self.repo}: tag {name} names another commit ({at[:12]}); choose another with --tag")

        self._call(f" tag {name}", put)

    def tags(self) -> Mapping[str, str]:
        """Tag names and their commits."""
        return self._call("", lambda: self._refs().tags)

    def make_public(self) -> None:
        """Show the repo to everybody."""
        self._call("", lambda: self._api.update_repo_settings(self.repo, private=False))

    def put(self, path: str, local: Path, content: Content, branch: str) -> tuple[str, RemoteFile]:
        """Upload one file to `branch` in a commit of its own; return the commit and what the tree says of the file.

        `content` are the hashes of `local`. Raises QuantkitError where the tree does not show them afterwards.
        """
        from huggingface_hub import CommitOperationAdd

        add = CommitOperationAdd(path, local)
        add.upload_info.sha256 = bytes.fromhex(content.sha256)  # or the client reads the file once more
        transferred = False

        def upload() -> str:
            nonlocal transferred
            if transferred and (there := self._look(branch, [path]).get(path)) and content.equals(there):
                # The commit was made, only its answer was lost.
                return str(self._api.model_info(self.repo, revision=branch).sha)
            self._api.preupload_lfs_files(self.repo, [add], revision=branch, free_memory=False)
            transferred = True
            return str(self._api.create_commit(self.repo, [add], commit_message=f"Add {path}", revision=branch).oid)

        commit = self._call(f"/{path}", upload)
        remote = self._call(f"/{path}", lambda: self._look(commit, [path])).get(path)
        if remote is None or not content.equals(remote):
            raise QuantkitError(f"{self.repo}/{path}: {differs(remote, content)}; repeat the command to send it again")
        return commit, remote

    def commit(
        self,
        operations: Callable[[], Sequence[CommitOperationAdd | CommitOperationCopy]],
        message: str,
        parent: str,
    ) -> str | None:
        """Make one commit on main; None where main is no longer at `parent`.

        `operations` makes them anew for every attempt, since the client uses one only once.
        """
        from huggingface_hub.errors import HfHubHTTPError

        def send() -> str | None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the client warns of metadata it would like to have
                    made = self._api.create_commit(
                        self.repo, operations(), commit_message=message, revision=MAIN, parent_commit=parent
                    )
            except HfHubHTTPError as error:
                if error.response.status_code == PRECONDITION_FAILED:
                    return None
                raise
            return str(made.oid)

        return self._call("", send)

    def _look(self, revision: str, paths: Sequence[str]) -> Mapping[str, RemoteFile]:
        found: list[RepoFile | RepoFolder] = []
        for start in range(0, len(paths), PATHS_PER_QUESTION):
            some = list(paths[start : start + PATHS_PER_QUESTION])
            found += self._api.get_paths_info(self.repo, some, revision=revision)
        return _by_path(found)

    def _refs(self) -> _Refs:
        refs = self._api.list_repo_refs(self.repo)
        return _Refs(
            {ref.name: ref.target_commit for ref in refs.branches}, {ref.name: ref.target_commit for ref in refs.tags}
        )

    def _call(self, where: str, action: Callable[[], T]) -> T:
        def act() -> T:
            try:
                return action()
            except ValueError as error:
                if isinstance(error, OSError):
                    raise  # an answer of the Hub, which `call` can read
                # What the client raises where the Hub refuses a card's metadata or an object of the large-file store.
                raise BadInput(redact(f"{self.repo}{where}: {' '.join(str(error).split())}")) from None

        return call(f"{self.repo}{where}", act, attempts=self._attempts)


@dataclass(frozen=True)
class _Refs:
    branches: Mapping[str, str]
    tags: Mapping[str, str]


def _by_path(listed: Sequence[RepoFile | RepoFolder]) -> dict[str, RemoteFile]:
    from huggingface_hub.hf_api import RepoFile

    return {
        entry.path: RemoteFile(
            entry.path, entry.size, entry.lfs.sha256 if entry.lfs is not None else None, entry.blob_id
        )
        for entry in listed
        if isinstance(entry, RepoFile)
    }


def differs(remote: RemoteFile | None, content: Content) -> str:
    """What is wrong with a file in the repo that should hold `content`."""
    if remote is None:
        return "is missing in the repo although it was committed (does a .gitignore there name it?)"
    return f"the repo has {remote.size} bytes, sha256 {remote.sha256}, where {content.size}, {content.sha256} were sent"

"""The last steps of an upload: one commit that brings everything to main, the tag, and only then visibility.

Every step first looks whether it is done, so that all of them can be repeated after a kill at any moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.errors import BadInput, QuantkitError, RunFailed
from quantkit.hub.repo_files import RemoteFile
from quantkit.hub.upload.content import Content, content_of, hash_file
from quantkit.hub.upload.journal import PushJournal, Uploaded
from quantkit.hub.upload.repository import Repository, State, differs

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy

CARD = "README.md"
LICENCE = "LICENSE"
# What belongs to all quantizations of a repo and is written anew when one is added; nothing else is ever replaced.
OWN_FOLDER = "quantkit/"
# Times that somebody else's commit may come in between.
ATTEMPTS = 5


def renewed(path: str) -> bool:
    """Whether a file of a repo may be replaced by one of other content."""
    return path == CARD or path.startswith(OWN_FOLDER)


def taken(repo: str, path: str) -> BadInput:
    """What is said where the repo holds another quantization's file."""
    return BadInput(
        f"{repo}/{path}: the repo has a file of this name, which is not known to be the same; publish to another repo, "
        "or delete it there first"
    )


def refuse_other(repo: str, path: str, there: RemoteFile | None, content: Content) -> None:
    """Refuse to put `content` in the place of a file that is not renewed by every upload."""
    if there is not None and not renewed(path) and not content.equals(there):
        raise taken(repo, path)


def small_contents(small_files: Mapping[str, bytes | Path]) -> dict[str, Content]:
    """Their hashes, by name in the repo. The card and the licence must be among them."""
    for needed in (CARD, LICENCE):
        if needed not in small_files:
            raise BadInput(f"{needed}: missing among the files to publish; nothing is published without it")
    return {
        path: content_of(data) if isinstance(data, bytes) else hash_file(data) for path, data in small_files.items()
    }


def bring_to_main(
    repository: Repository,
    journal: PushJournal,
    staging: str,
    large: Mapping[str, Uploaded],
    small_files: Mapping[str, bytes | Path],
    *,
    message: str,
    tag: str | None,
    public: bool,
) -> str:
    """Commit the `large` files of branch `staging` and `small_files` to main, remove the branch, tag, and show.

    Returns the commit on main that has everything, which was checked against its tree.
    """
    wanted = {path: Content(one.size, one.sha256, one.oid) for path, one in large.items()}
    wanted |= small_contents(small_files)
    state, changed = _commit_missing(repository, staging, wanted, small_files, message)
    commit = state.commit if changed or journal.published is None else journal.published
    journal.record_published(commit)
    repository.delete_branch(staging)
    if tag is not None:
        repository.tag(tag, commit)
    if public and state.private:
        repository.make_public()
    return commit


def _commit_missing(
    repository: Repository,
    staging: str,
    wanted: Mapping[str, Content],
    small_files: Mapping[str, bytes | Path],
    message: str,
) -> tuple[State, bool]:
    """Bring to main what is not there, in one commit; return main's state, checked, and whether that was needed."""
    changed = False
    for _ in range(ATTEMPTS):
        main = repository.state()
        if main is None:
            repository.create()
            continue
        for path, content in wanted.items():
            refuse_other(repository.repo, path, main.files.get(path), content)
        missing = [path for path, content in wanted.items() if not _holds(main, path, content)]
        if not missing:
            return main, changed
        if changed:
            raise QuantkitError(
                f"{repository.repo}/{missing[0]}: {differs(main.files.get(missing[0]), wanted[missing[0]])}"
            )
        changed = _commit(repository, staging, missing, wanted, small_files, message, main.commit)
    raise RunFailed(f"{repository.repo}: main changes all the time; repeat the command to go on")


def _commit(
    repository: Repository,
    staging: str,
    missing: Sequence[str],
    wanted: Mapping[str, Content],
    small_files: Mapping[str, bytes | Path],
    message: str,
    parent: str,
) -> bool:
    """Make the commit; False where main moved meanwhile."""
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy

    copied = [path for path in missing if path not in small_files]
    source = repository.state(staging) if copied else None
    for path in copied:
        if source is None or not _holds(source, path, wanted[path]):
            raise QuantkitError(f"{repository.repo}/{path}: no longer on branch {staging}; repeat the command")

    def operations() -> list[CommitOperationAdd | CommitOperationCopy]:
        made: list[CommitOperationAdd | CommitOperationCopy] = []
        for path in missing:
            if path in small_files:
                made.append(CommitOperationAdd(path, small_files[path]))
            elif source is not None:
                made.append(CommitOperationCopy(path, path, src_revision=source.commit))
        return made

    return repository.commit(operations, message, parent) is not None


def _holds(state: State, path: str, content: Content) -> bool:
    return path in state.files and content.equals(state.files[path])

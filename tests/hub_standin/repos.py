"""Repositories of the stand-in Hub: commits with a tree each, branches, tags, and who may see them."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

_serial = itertools.count()


class Refused(Exception):
    """A request that is answered with an error: status, the Hub's error code (or None), message, more JSON fields."""

    def __init__(self, status: int, code: str | None, message: str, **fields: object) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.fields = status, code, message, fields


@dataclass(frozen=True)
class Entry:
    """A file in a tree: its content, and whether it is a large one."""

    sha256: str
    size: int
    oid: str  # git's: of the content, of the pointer if it is a large file
    lfs: bool
    xet: str | None = None


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    date: float
    tree: Mapping[str, Entry]


@dataclass(frozen=True)
class Moment:
    """What a repository looked like after a change: the files on main by path, and who could see them."""

    what: str  # create, commit, visibility, gated, delete
    private: bool
    files: Mapping[str, str]  # path: sha256


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def large_entry(sha256: str, size: int, xet: str | None = None) -> Entry:
    return Entry(sha256, size, git_oid(lfs_pointer(sha256, size)), lfs=True, xet=xet)


@dataclass
class Repo:
    """One repository. Changes happen under `lock`."""

    id: str
    private: bool
    gated: str | bool = False
    granted: set[str] = field(default_factory=set)  # users who may read it although it is gated
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)  # name: commit
    tags: dict[str, str] = field(default_factory=dict)
    objects: dict[str, Entry] = field(default_factory=dict)  # sha256: large files that were uploaded or committed
    history: list[Moment] = field(default_factory=list)
    created: float = field(default_factory=time.time)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a commit's id names."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        oid = self.branches.get(revision.removeprefix("refs/heads/"), oid)
        if oid not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[oid]

    def add_commit(self, branch: str, tree: Mapping[str, Entry], title: str, message: str = "") -> Commit:
        """Put a commit with this tree at the tip of a branch, which is made if it is new."""
        parent = self.branches.get(branch)
        oid = hashlib.sha1(f"{self.id} {next(_serial)} {time.time_ns()}".encode()).hexdigest()
        commit = Commit(oid, parent, title, message, time.time(), dict(tree))
        self.commits[oid] = commit
        self.branches[branch] = oid
        self.objects |= {entry.sha256: entry for entry in tree.values() if entry.lfs}
        if branch == "main":
            self.remember("commit")
        return commit

    def remember(self, what: str) -> None:
        """Note what main looks like and who sees it."""
        tree = self.commits[self.branches["main"]].tree
        self.history.append(Moment(what, self.private, {path: entry.sha256 for path, entry in tree.items()}))

    def set_visibility(self, private: bool) -> None:
        self.private = private
        self.remember("visibility")

    def stored_bytes(self) -> int:
        return sum(entry.size for entry in self.objects.values())

    def log_of(self, revision: str) -> list[Commit]:
        """The commit and its parents, newest first."""
        commits = [self.at(revision)]
        while commits[-1].parent is not None:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def squash(self, branch: str, title: str) -> None:
        """Leave one commit without a parent on the branch."""
        commit = self.add_commit(branch, self.at(branch).tree, title)
        self.commits[commit.oid] = replace(commit, parent=None)

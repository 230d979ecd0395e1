"""The stand-in Hub: what it remembers, its knobs, and what tests ask it. `server.py` speaks HTTP for it."""

from __future__ import annotations

import os
import re
import secrets
import threading
from dataclasses import dataclass, field
from pathlib import Path

from hub_standin.faults import Fault, Faults
from hub_standin.repos import Entry, Moment, Repo, git_oid, large_entry
from hub_standin.store import Blobs
from hub_standin.xet_store import XetStore

LARGE_SUFFIXES = (".safetensors", ".gguf", ".bin", ".dat")
LARGE_BYTES = 10 << 20
GIT_ATTRIBUTES = ".gitattributes"


def new_token(word: str) -> str:
    """A token of the Hub's shape (37 characters), which clients check; the word says whose it is."""
    return f"hf_{word}{secrets.token_hex(17)}"[:37]


@dataclass(frozen=True)
class Account:
    """Whom a token belongs to, and what it may do ("read" or "write") in which namespaces."""

    name: str
    role: str
    organizations: tuple[str, ...] = ()

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (self.name, *self.organizations)


@dataclass
class Request:
    """A line of the log. `token` is the name of the account, not the token."""

    method: str
    path: str  # with the query, as sent
    range: str | None
    host: str  # "hub" or "content": the port that signed links lead to
    token: str | None
    when: float
    status: int = 0
    bytes_in: int = 0  # of the body
    bytes_out: int = 0
    seconds: float = 0.0
    fault: str | None = None


@dataclass(repr=False)
class Hub:
    """State of a stand-in Hub whose files lie under `folder`. Thread-safe; knobs may be turned while it runs."""

    folder: Path
    xet: XetStore | None = None  # None: large files by LFS only
    multipart_over: int = 1 << 20  # larger files go up in parts of `chunk_size`
    chunk_size: int = 1 << 20
    private_limit: int | None = None  # bytes of large files in private repositories
    page_size: int = 1000  # entries of one answer to a listing
    sign_links: float | None = None  # seconds that links to large files on the second port live; None: no such links
    repos: dict[str, Repo] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    log: list[Request] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)
    deleted: dict[str, Repo] = field(default_factory=dict)
    url: str = ""  # set by the server, as is the other one
    content_url: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)
    stopping: threading.Event = field(default_factory=threading.Event)
    secret: str = field(default_factory=lambda: secrets.token_hex(16))
    write_token: str = field(default_factory=lambda: new_token("write"))
    read_token: str = field(default_factory=lambda: new_token("read"))
    other_token: str = field(default_factory=lambda: new_token("other"))
    uploaded_bytes: int = 0  # contents that came by HTTP, kept or not; in Xet mode small files only
    downloaded_bytes: int = 0  # contents that went by HTTP

    def __post_init__(self) -> None:
        self.blobs = Blobs(self.folder / "blobs")
        self.add_token(self.write_token, "me", "write", organizations=("us",))
        self.add_token(self.read_token, "me", "read", organizations=("us",))
        self.add_token(self.other_token, "someone", "write")

    def add_token(self, token: str, name: str, role: str, organizations: tuple[str, ...] = ()) -> None:
        """Let a token in."""
        self.accounts[token] = Account(name, role, organizations)

    def fail(self, *faults: Fault) -> None:
        """Set faults; see `Fault`."""
        self.faults.add(*faults)

    def add_repo(
        self, repo_id: str, folder: Path | None = None, *, private: bool = False, gated: bool = False, branch: str = ""
    ) -> Repo:
        """A repository with the files of a local folder (hard links, hashed once), without any HTTP.

        If it exists, the folder becomes the next commit: of main, or of the branch named.
        """
        with self.lock:
            repo = self.repos.get(repo_id)
            if repo is None:
                repo = self.create(repo_id, private=private)
                repo.gated = "auto" if gated else False
        if folder is not None:
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            tree = {path.relative_to(folder).as_posix(): self.entry_of(path) for path in paths}
            with repo.lock:
                first = repo.at("main").tree[GIT_ATTRIBUTES]
                repo.add_commit(branch or "main", {GIT_ATTRIBUTES: first} | tree, f"Add {folder.name}")
        return repo

    def create(self, repo_id: str, *, private: bool) -> Repo:
        """A new repository; its first commit holds .gitattributes alone, as on the Hub."""
        repo = Repo(repo_id, private)
        text = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES).encode()
        repo.add_commit("main", {GIT_ATTRIBUTES: self.small_entry(text)}, "initial commit")
        self.repos[repo_id] = repo
        return repo

    def small_entry(self, content: bytes) -> Entry:
        """Store the content of a small file."""
        sha256 = self.blobs.receive([content])
        return Entry(sha256, len(content), git_oid(content), lfs=False)

    def entry_of(self, path: Path) -> Entry:
        """Store a local file; large files also in the Xet store, if there is one."""
        size = path.stat().st_size
        with path.open("rb") as file:
            sample = file.read(512)
        sha256 = self.blobs.add_file(path)
        if not is_large(path.name, size, sample):
            return Entry(sha256, size, git_oid(path.read_bytes()), lfs=False)
        found = self.xet.find(sha256) if self.xet else None
        xet = found[0] if found else self.xet.add(path, sha256) if self.xet else None
        return large_entry(sha256, size, xet)

    def content(self, entry: Entry) -> Path:
        """Where the bytes of a file are; taken out of the Xet store if they are only there."""
        path = self.blobs.path(entry.sha256)
        if not path.exists():
            assert self.xet is not None
            assert entry.xet is not None
            self.xet.extract(entry.xet, entry.size, path)
        return path

    # What tests ask for.

    def files(self, repo_id: str, revision: str = "main") -> dict[str, str]:
        """Path -> sha256 at a revision, without .gitattributes."""
        tree = self.repos[repo_id].at(revision).tree
        return {path: entry.sha256 for path, entry in tree.items() if path != GIT_ATTRIBUTES}

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        return self.content(self.repos[repo_id].at(revision).tree[path]).read_bytes()

    def checkout(self, repo_id: str, folder: Path, revision: str = "main") -> Path:
        """Hard-link the files of a revision into a folder, without .gitattributes; do not write into them."""
        for path in self.files(repo_id, revision):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(self.content(self.repos[repo_id].at(revision).tree[path]), target)
        return folder

    def history(self, repo_id: str) -> list[Moment]:
        """The repository after each change of main or of who may see it; also of one that was deleted."""
        return list((self.repos.get(repo_id) or self.deleted[repo_id]).history)

    def public_files(self, repo_id: str) -> list[dict[str, str]]:
        """Every list of files (path -> sha256, without .gitattributes) that the public ever saw on main."""
        seen = [dict(moment.files) for moment in self.history(repo_id) if not moment.private]
        return [{path: sha256 for path, sha256 in files.items() if path != GIT_ATTRIBUTES} for files in seen]

    def requests(self, pattern: str = "") -> list[Request]:
        """Lines of the log whose "METHOD /path?query" has the pattern in it (a regular expression)."""
        with self.lock:
            return [line for line in self.log if re.search(pattern, f"{line.method} {line.path}")]


def is_large(name: str, size: int, sample: bytes) -> bool:
    """Whether the Hub keeps a file outside git: by suffix, by size, or because it is not text. Empty ones never."""
    return size > 0 and (name.endswith(LARGE_SUFFIXES) or size > LARGE_BYTES or b"\0" in sample)

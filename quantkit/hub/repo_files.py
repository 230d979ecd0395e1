"""The files of one commit of a repository: what there is, and any range of their bytes.

The client's own reader of ranges asks to the end of a file or forwards more than it should, so requests are made here,
on the client's HTTP session and with its headers.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from huggingface_hub import RepoFile, constants, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported without saying so

from quantkit import __version__
from quantkit.errors import BadInput, RunFailed
from quantkit.hub.address import Address
from quantkit.hub.client import EXPIRED, LIBRARY, api, call

REDIRECTS = {301, 302, 303, 307, 308}
MOST_REDIRECTS = 5
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
# Times that content with a wrong hash is fetched before the run gives up.
HASH_ATTEMPTS = 3


@dataclass(frozen=True)
class RemoteFile:
    """A file of a commit: bytes, and the SHA-256 of a large one or the git object id (SHA-1) of a regular one."""

    path: str
    size: int
    sha256: str | None
    oid: str

    def matches(self, content: bytes) -> bool:
        """Whether `content` is this file's."""
        if self.sha256 is not None:
            return hashlib.sha256(content).hexdigest() == self.sha256
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == self.oid


class _BodyEndsEarly(OSError):
    """The connection gave fewer bytes than were asked for."""


class RepoFiles:
    """The files of a model repository at one commit, to which the revision was resolved once. Used by many threads.

    `bytes_read` counts what came over the network from the files' contents. `listing`, a commit and its files, saves
    the two requests for them; `sleep` waits a number of seconds between attempts. Raises as `call` does.
    """

    def __init__(
        self,
        address: Address,
        listing: tuple[str, dict[str, RemoteFile]] | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.repo = address.repo
        self.revision = address.revision
        self.commit, self.files = listing or _list(address)
        self.bytes_read = 0
        self._sleep = sleep
        self._links: dict[str, str] = {}
        self._lock = threading.Lock()

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Return `length` bytes of file `path` from `offset` on, fewer where it ends."""
        buffer = bytearray(max(0, min(length, self.file(path).size - offset)))
        self.read_into(path, memoryview(buffer), offset)
        return bytes(buffer)

    def read_into(self, path: str, view: memoryview, offset: int) -> None:
        """Fill `view`, all of which must be inside of the file, from byte `offset` of file `path` on.

        A connection that breaks is opened again behind the last byte that came.
        """
        done = 0

        def attempt() -> None:
            nonlocal done
            before = done
            try:
                for chunk in self._stream(path, offset + done, len(view) - done):
                    view[done : done + len(chunk)] = chunk
                    done += len(chunk)
                if done < len(view):
                    raise _BodyEndsEarly(f"{done} of {len(view)} bytes came")
            except Exception:
                if done == before:
                    raise  # else there was progress, and the next attempt is a first one again

        while done < len(view):
            self._sleep(0)  # may raise: the run is over
            call(f"{self.repo}: {path}", attempt, sleep=self._sleep)

    def read_all(self, path: str, most: int = 64 * 2**20) -> bytes:
        """Return the whole file `path`, its hash checked; BadInput when it has more than `most` bytes."""
        file = self.file(path)
        if file.size > most:
            raise BadInput(f"{self.repo}: {path} has {file.size} bytes, more than the {most} such a file may have")
        for _ in range(HASH_ATTEMPTS):
            content = self.read(path, 0, file.size)
            if file.matches(content):
                return content
        raise RunFailed(
            f"{self.repo}: {path} came {HASH_ATTEMPTS} times with another hash than {file.sha256 or file.oid}; "
            "repeat the command to go on, or check the proxy on the way"
        )

    def file(self, path: str) -> RemoteFile:
        """What the listing says of `path`; BadInput when the commit has no such file."""
        if path not in self.files:
            raise BadInput(f"{self.repo}: there is no file {path} at {self.revision or 'main'} ({self.commit[:8]})")
        return self.files[path]

    def _stream(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        """The bytes of one request, in the pieces in which they come, never more than `length`."""
        with self._response(path, offset, length) as response:
            self._check_range(path, response, offset)
            left = length
            for chunk in response.iter_bytes():
                with self._lock:
                    self.bytes_read += len(chunk)
                yield chunk[:left]
                left -= len(chunk)
                if left <= 0:
                    return

    @contextmanager
    def _response(self, path: str, offset: int, length: int) -> Iterator[Any]:
        """The answer to a request for a range, from wherever the Hub sends us; a link that has expired is renewed."""
        address = hf_hub_url(self.repo, path, revision=self.commit)
        byte_range = f"bytes={offset}-{offset + length - 1}"
        url = self._links.get(path, address)
        for _ in range(MOST_REDIRECTS):
            with get_session().stream(
                "GET",
                url,
                headers=_headers(url, byte_range),
                follow_redirects=False,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            ) as response:
                if response.status_code in EXPIRED and self._links.pop(path, None) is not None:
                    url = address
                elif response.status_code in REDIRECTS and "location" in response.headers:
                    url = self._links[path] = urljoin(url, response.headers["location"])
                else:
                    if response.status_code in EXPIRED and url != address:
                        raise _BodyEndsEarly(f"a fresh link was refused with HTTP {response.status_code}")
                    hf_raise_for_status(response)
                    yield response
                    return
        raise _BodyEndsEarly(f"more than {MOST_REDIRECTS} redirects")

    def _check_range(self, path: str, response: Any, offset: int) -> None:
        expected = self.file(path).size
        match = CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if response.status_code == 206 and match is not None:
            if int(match[1]) != offset or int(match[3]) != expected:
                raise _BodyEndsEarly(f"asked for byte {offset} of {expected}, got {match[0]}")
        elif response.status_code != 200 or offset:
            raise BadInput(f"{self.repo}: {path}: the server or a proxy on the way does not serve ranges of a file")


def _headers(url: str, byte_range: str) -> dict[str, str]:
    """Headers of one request. The token is for the Hub alone: a signed link is to another host and needs none."""
    headers = build_hf_headers(library_name=LIBRARY, library_version=__version__)
    if urlsplit(url)[:2] != urlsplit(constants.ENDPOINT)[:2]:
        headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    return {**headers, "Range": byte_range, "Accept-Encoding": "identity"}


def _list(address: Address) -> tuple[str, dict[str, RemoteFile]]:
    """Resolve the revision and list the tree of that commit."""
    hub = api()
    info = call(str(address), lambda: hub.model_info(address.repo, revision=address.revision))
    commit = info.sha
    if not commit:
        raise RunFailed(f"{address}: the Hub names no commit; repeat the command, or check HF_ENDPOINT")
    tree = call(str(address), lambda: list(hub.list_repo_tree(address.repo, recursive=True, revision=commit)))
    files = {}
    for entry in tree:
        if isinstance(entry, RepoFile):
            large = entry.lfs
            size, sha256 = (large.size, large.sha256) if large is not None else (entry.size, None)
            files[entry.path] = RemoteFile(entry.path, size, sha256, entry.blob_id)
    return commit, files

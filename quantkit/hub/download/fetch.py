"""One whole shard through the client's own download (Xet, or HTTP with resume), with size and SHA-256 checked."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

from huggingface_hub.utils.tqdm import tqdm

from quantkit.errors import QuantkitError, RunFailed
from quantkit.hub.client import api, call
from quantkit.hub.download.folder import SpoolFolder
from quantkit.hub.repo_files import HASH_ATTEMPTS, RemoteFile, RepoFiles

READ_BYTES = 4 * 2**20


class Stopped(QuantkitError):
    """A transfer was given up because its run is over."""


class Pause:
    """Waiting that ends at once, with Stopped, when the run is over."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def __call__(self, seconds: float) -> None:
        """Wait so long."""
        if self._over.wait(seconds):
            raise Stopped("the run is over")

    def end(self) -> None:
        """The run is over: from now on every pause raises."""
        self._over.set()


def fetch_shard(files: RepoFiles, shard: str, folder: SpoolFolder, pause: Pause) -> None:
    """Bring a shard into the folder and check it; one that is there already is only checked.

    A shard with another hash is deleted and fetched again. Raises RunFailed when it is wrong every time, Stopped soon
    after `pause` ended, otherwise as `call` does.
    """
    file = files.file(shard)
    found = ""
    for _ in range(HASH_ATTEMPTS):
        path = folder.path / shard
        if not path.is_file():
            _download(files, shard, folder.path, pause)
        found = _fingerprint(path, file, pause)
        if found in (file.sha256, file.oid):
            folder.check_in(shard)
            return
        folder.remove(shard)
    raise RunFailed(
        f"{files.repo}: {shard} came {HASH_ATTEMPTS} times with hash {found}, not {file.sha256 or file.oid}; "
        "repeat the command to go on, or check the proxy on the way"
    )


def _download(files: RepoFiles, shard: str, folder: Path, pause: Pause) -> None:
    class Watcher(tqdm):
        """The client's progress bar, never drawn: the one place where a download tells that it goes on."""

        def __init__(self, *arguments: Any, **settings: Any) -> None:
            # An error in hf_xet's callback would only be printed.
            self._interrupts = "xet" not in str(settings.get("name"))
            settings["disable"] = True
            super().__init__(*arguments, **settings)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            if self._interrupts:
                pause(0)
            return super().update(n)  # type: ignore[no-any-return]

    def download() -> None:
        pause(0)
        api().hf_hub_download(files.repo, shard, revision=files.commit, local_dir=folder, tqdm_class=Watcher)

    call(f"{files.repo}: {shard}", download, sleep=pause)


def _fingerprint(path: Path, file: RemoteFile, pause: Pause) -> str:
    """What the listing gives of a file: the SHA-256 of a large one, the git object id of a regular one."""
    size = path.stat().st_size
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb", buffering=0) as content:
        while block := content.read(READ_BYTES):
            pause(0)
            digest.update(block)
    return digest.hexdigest()

"""A checkpoint given as a path or as an address on the Hub: either way, a folder to read from."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from quantkit.checkpoint.shards import serve_shards
from quantkit.errors import BadInput
from quantkit.hub import client
from quantkit.hub.address import SCHEME, Address, parse_address
from quantkit.hub.download.fetch import Pause
from quantkit.hub.download.mirror import Mirror, SourceRecord, mirrored_listing, source_record
from quantkit.hub.download.spool import Spool
from quantkit.hub.repo_files import RemoteFile, RepoFiles

__all__ = ["SourceRecord", "open_source", "source_record"]


@contextmanager
def open_source(source: Path, cache_size: int, *, quiet: bool) -> Iterator[Path]:
    """Give the folder to read the checkpoint `source` from, until the end of the context.

    A local folder is given as it is. For an address on the Hub it is the mirror, named as the repository, whose shards
    are downloaded as they are needed into at most `cache_size` bytes of disk, deleted at the end and kept for the next
    run when an exception passes. One line on stderr says what is used, unless `quiet`. Raises
    BadInput and RunFailed as `client.call` does.
    """
    address = parse_address(str(source))
    if address is None:
        yield source
        return
    pause = Pause()
    with client.quiet():
        mirror, spool = _prepare(address, source, cache_size, pause)
        if not quiet:
            _announce(mirror)
        ended_well = False
        try:
            with serve_shards(mirror.folder, spool):
                yield mirror.folder
            ended_well = True
        finally:
            spool.close(keep=not ended_well)


def _prepare(address: Address, source: Path, cache_size: int, pause: Pause) -> tuple[Mirror, Spool]:
    try:
        mirror = Mirror(_files(address, source, pause))
        mirror.complete()
        # More than the disk has would end the run, where reading by ranges goes on.
        free = shutil.disk_usage(mirror.folder).free
        return mirror, Spool(mirror, min(cache_size, free * 9 // 10), pause)
    except OSError as error:
        pause.end()
        place = error.filename or constants.HF_HOME
        raise BadInput(f"{place}: cannot be used ({error.strerror}); set HF_HOME to a folder with room") from None
    except BaseException:
        pause.end()  # no further attempts of requests under way
        raise


def _files(address: Address, source: Path, pause: Pause) -> RepoFiles:
    if constants.is_offline_mode():
        listing = _snapshot_listing(address) or mirrored_listing(address)
        if listing is None:
            raise BadInput(
                f"{address}: HF_HUB_OFFLINE is set and an earlier run left no copy of its configuration; "
                "unset it for one run, or give the folder of a downloaded checkpoint"
            )
        return RepoFiles(address, listing, pause)
    try:
        return RepoFiles(address, sleep=pause)
    except BadInput as error:
        if str(source).startswith(SCHEME):
            raise
        raise BadInput(f"{error}; nor is there a local folder {source}") from None


def _snapshot_listing(address: Address) -> tuple[str, dict[str, RemoteFile]] | None:
    """The commit and files of the user's own download of a revision, if the client's cache has one with weights.

    The cache names contents by their hash: a SHA-256, or the git object id of a small file.
    """
    config = try_to_load_from_cache(address.repo, "config.json", revision=address.revision)
    if not isinstance(config, str):
        return None
    snapshot = Path(config).parent
    files = {}
    for path in snapshot.rglob("*"):
        if path.is_file():
            name, digest = path.relative_to(snapshot).as_posix(), path.resolve().name
            is_sha256 = len(digest) == 64
            files[name] = RemoteFile(
                name, path.stat().st_size, digest if is_sha256 else None, "" if is_sha256 else digest
            )
    return (snapshot.name, files) if any(name.endswith(".safetensors") for name in files) else None


def _announce(mirror: Mirror) -> None:
    files = mirror.files
    shards = [file.size for path, file in files.files.items() if path.endswith(".safetensors")]
    print(
        f"{files.repo} at {files.commit[:12]}: {len(shards)} shards, {sum(shards) / 1e9:.1f} GB, streamed in",
        file=sys.stderr,
    )

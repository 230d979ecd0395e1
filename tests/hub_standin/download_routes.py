"""Contents on their way out: resolve with ranges and conditions, and signed links to a second port."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from pathlib import Path

from hub_standin.exchange import Exchange
from hub_standin.repos import Entry, Refused


def resolve(exchange: Exchange, repo_id: str, revision: str, path: str) -> None:
    repo = exchange.repo(repo_id, contents=True)
    commit = repo.at(revision)
    entry = commit.tree.get(path)
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    if entry is None:
        exchange.reply(
            404,
            {"error": "Entry not found"},
            headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"},
        )
        return
    etag = f'"{entry.sha256 if entry.lfs else entry.oid}"'
    headers |= {"ETag": etag, "Content-Type": "application/octet-stream"}
    headers["Content-Disposition"] = f'inline; filename="{path.rsplit("/", 1)[-1]}"'
    if entry.lfs:
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(entry.size)}
    if entry.xet and exchange.hub.xet:
        route = f"{exchange.hub.url}/api/models/{repo_id}/xet-read-token/{commit.oid}"
        headers |= {"X-Xet-Hash": entry.xet, "X-Xet-Refresh-Route": route}
        headers["Link"] = f'<{route}>; rel="xet-auth"'
    if entry.lfs and exchange.hub.sign_links is not None:
        exchange.reply(302, None, headers | {"Location": signed_link(exchange, entry)})
        return
    send_ranges(exchange, entry, etag, headers)


def send_ranges(exchange: Exchange, entry: Entry, etag: str, headers: dict[str, str]) -> None:
    """The content or the part of it that is asked for, if the conditions of the request hold."""
    asked = exchange.headers
    if asked.get("If-None-Match") == etag:
        exchange.start(304, 0, headers)
        return
    if asked.get("If-Match") not in (None, "*", etag):
        raise Refused(412, None, "Precondition failed")
    wanted = asked.get("Range") if asked.get("If-Range") in (None, etag) else None
    start, stop = byte_range(wanted, entry.size)
    if start >= entry.size and wanted:
        exchange.reply(416, None, {"Content-Range": f"bytes */{entry.size}"})
        return
    partial = {"Content-Range": f"bytes {start}-{stop - 1}/{entry.size}"} if wanted else {}
    path = Path() if exchange.command == "HEAD" else exchange.hub.content(entry)
    exchange.start(206 if wanted else 200, stop - start, headers | partial)
    exchange.send_file(path, start, stop)


def byte_range(header: str | None, size: int) -> tuple[int, int]:
    """First byte and the byte after the last of a Range header; the whole file without one."""
    if header is None:
        return 0, size
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if asked is None or asked.groups() == ("", ""):
        raise Refused(400, None, f"cannot read the range {header!r}")
    first, last = asked.groups()
    if first == "":
        return max(size - int(last), 0), size
    return int(first), min(int(last) + 1, size) if last else size


def signature(exchange: Exchange, sha256: str, expires: str) -> str:
    return hmac.new(exchange.hub.secret.encode(), f"{sha256} {expires}".encode(), hashlib.sha256).hexdigest()


def signed_link(exchange: Exchange, entry: Entry) -> str:
    expires = f"{time.time() + (exchange.hub.sign_links or 0):.3f}"
    query = f"Expires={expires}&Signature={signature(exchange, entry.sha256, expires)}"
    return f"{exchange.hub.content_url}/content/{entry.sha256}?{query}"


def content(exchange: Exchange, sha256: str) -> None:
    """The second port: whoever has a link that is not too old gets the bytes; tokens are not asked for."""
    expires = exchange.query.get("Expires", "0")
    if exchange.query.get("Signature") != signature(exchange, sha256, expires):
        raise Refused(403, None, "The signature does not match")
    if float(expires) < time.time():
        raise Refused(403, None, "Request has expired")
    entry = next(repo.objects[sha256] for repo in list(exchange.hub.repos.values()) if sha256 in repo.objects)
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    send_ranges(exchange, entry, f'"{sha256}"', headers | {"ETag": f'"{sha256}"'})


ROUTES = (
    ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", resolve),
    ("HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", resolve),
)
CONTENT_ROUTES = (
    ("GET", r"/content/([0-9a-f]{64})", content),
    ("HEAD", r"/content/([0-9a-f]{64})", content),
)

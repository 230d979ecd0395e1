"""Contents on their way in: preupload, LFS in one piece or in parts, the Xet tokens, and commits."""

from __future__ import annotations

import base64
import json
from typing import Any

from hub_standin.exchange import Exchange
from hub_standin.faults import QUOTA_MESSAGE
from hub_standin.hub import is_large
from hub_standin.repo_routes import MODEL
from hub_standin.repos import Entry, Refused, Repo, large_entry
from hub_standin.store import WrongChecksumError

LFS_TYPE = {"Content-Type": "application/vnd.git-lfs+json"}
MISSING_OBJECT = (
    "Your push was rejected because an LFS pointer pointed to a file that does not exist. Offending file: - {path}"
)


def preupload(exchange: Exchange, repo_id: str, revision: str) -> None:
    repo = exchange.repo(repo_id, write=True)
    tree = repo.at(revision).tree
    files = []
    for asked in exchange.json()["files"]:
        path, size = asked["path"], asked["size"]
        mode = "lfs" if is_large(path, size, base64.b64decode(asked.get("sample", ""))) else "regular"
        record = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        if path in tree:  # the client skips what is there already
            record["oid"] = tree[path].sha256 if tree[path].lfs else tree[path].oid
        files.append(record)
    exchange.reply(200, {"files": files, "commitOid": repo.at(revision).oid})


def check_quota(exchange: Exchange, repo: Repo, more: int) -> None:
    limit = exchange.hub.private_limit
    if limit is None or not repo.private:
        return
    owner = repo.id.split("/")[0]
    kept = [other for other in exchange.hub.repos.values() if other.private and other.id.startswith(f"{owner}/")]
    if sum(other.stored_bytes() for other in kept) + more > limit:
        raise Refused(403, None, QUOTA_MESSAGE)


def lfs_batch(exchange: Exchange, repo_id: str) -> None:
    repo, asked, hub = exchange.repo(repo_id, write=True), exchange.json(), exchange.hub
    new = [item for item in asked["objects"] if item["oid"] not in repo.objects]
    check_quota(exchange, repo, sum(item["size"] for item in new))
    objects: list[dict[str, Any]] = []
    for item in asked["objects"]:
        record: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
        objects.append(record)
        if item not in new:
            continue  # no actions: it is stored already
        base = f"{hub.url}/lfs/{repo_id}/{item['oid']}"
        upload: dict[str, Any] = {"href": base}
        if item["size"] > hub.multipart_over and "multipart" in asked["transfers"]:
            count = -(-item["size"] // hub.chunk_size)
            urls = {f"{number:05d}": f"{base}/part/{hub.chunk_size}/{number}" for number in range(1, count + 1)}
            upload = {
                "href": f"{base}/complete/{hub.chunk_size}",
                "header": {"chunk_size": str(hub.chunk_size), **urls},
            }
        record["actions"] = {"upload": upload, "verify": {"href": f"{base}/verify"}}
    transfer = (
        "multipart" if any("header" in record.get("actions", {}).get("upload", {}) for record in objects) else "basic"
    )
    exchange.reply(200, {"transfer": transfer, "objects": objects}, LFS_TYPE)


def counted(exchange: Exchange) -> Any:
    """The body of an upload, counted."""
    for chunk in exchange.chunks():
        with exchange.hub.lock:
            exchange.hub.uploaded_bytes += len(chunk)
        yield chunk


def keep(exchange: Exchange, repo_id: str, sha256: str) -> None:
    """The repository has this large file from now on."""
    repo = exchange.hub.repos[repo_id]
    with repo.lock:
        repo.objects[sha256] = large_entry(sha256, exchange.hub.blobs.size(sha256))


def lfs_put(exchange: Exchange, repo_id: str, sha256: str) -> None:
    try:
        exchange.hub.blobs.receive(counted(exchange), sha256)
    except WrongChecksumError as error:
        raise Refused(422, None, f"Checksum mismatch: {error}") from error
    keep(exchange, repo_id, sha256)
    exchange.reply(200, None, {"ETag": f'"{sha256[:32]}"'})


def lfs_part(exchange: Exchange, repo_id: str, sha256: str, chunk_size: str, number: str) -> None:
    offset = (int(number) - 1) * int(chunk_size)
    etag = exchange.hub.blobs.receive_part(sha256, offset, counted(exchange))
    exchange.reply(200, None, {"ETag": etag})


def lfs_complete(exchange: Exchange, repo_id: str, sha256: str, chunk_size: str) -> None:
    parts = exchange.json()["parts"]
    etags = {(part["partNumber"] - 1) * int(chunk_size): part["etag"] for part in parts}
    if sha256 not in exchange.hub.repos[repo_id].objects:  # an answer may have been lost
        try:
            exchange.hub.blobs.complete(sha256, etags)
        except WrongChecksumError as error:
            raise Refused(422, None, f"Checksum mismatch: {error}") from error
    keep(exchange, repo_id, sha256)
    exchange.reply(200, {})


def lfs_verify(exchange: Exchange, repo_id: str, sha256: str) -> None:
    found = exchange.repo(repo_id, write=True).objects.get(sha256)
    if found is None or found.size != exchange.json().get("size"):
        raise Refused(404, None, f"{sha256} is not stored")
    exchange.reply(200, {})


def xet_token(exchange: Exchange, repo_id: str, kind: str, revision: str) -> None:
    exchange.repo(repo_id, write=kind == "write", contents=True).at(revision)
    store = exchange.hub.xet
    if store is None:
        raise Refused(404, None, "Not a Xet repository")
    token, expiry = store.token()
    headers = {"X-Xet-Cas-Url": store.url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expiry)}
    exchange.reply(200, {"casUrl": store.url, "accessToken": token, "exp": expiry}, headers)


def committed_entry(exchange: Exchange, repo: Repo, path: str, sha256: str) -> Entry:
    """A large file that a commit names: uploaded before, or known from another revision."""
    if sha256 in repo.objects:
        return repo.objects[sha256]
    found = exchange.hub.xet.find(sha256) if exchange.hub.xet else None
    if found is None:
        raise Refused(400, None, MISSING_OBJECT.format(path=path))
    check_quota(exchange, repo, found[1])
    return large_entry(sha256, found[1], found[0])


def changed(exchange: Exchange, repo: Repo, tree: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
    """Apply one operation of a commit to the tree."""
    path = value["path"]
    if key == "file":
        content = base64.b64decode(value["content"])
        with exchange.hub.lock:
            exchange.hub.uploaded_bytes += len(content)
        tree[path] = exchange.hub.small_entry(content)
    elif key == "lfsFile":
        entry = committed_entry(exchange, repo, path, value["oid"])
        if value.get("size", entry.size) != entry.size:
            raise Refused(400, None, f"{path} has {entry.size} bytes, not {value['size']}")
        tree[path] = entry
    elif key == "deletedFile":
        if tree.pop(path, None) is None:
            raise Refused(404, "EntryNotFound", f"{path} does not exist")
    elif key == "deletedFolder":
        for inside in [name for name in tree if name.startswith(path.rstrip("/") + "/")]:
            del tree[inside]
    else:
        raise Refused(400, None, f"unknown operation {key}")


def commit(exchange: Exchange, repo_id: str, branch: str) -> None:
    repo = exchange.repo(repo_id, write=True)
    lines = [json.loads(line) for line in exchange.body().splitlines() if line.strip()]
    header = lines[0]["value"]
    if not header.get("summary"):
        raise Refused(400, None, "A commit needs a summary")
    with repo.lock:
        tip = repo.at(branch)
        if branch not in repo.branches:
            raise Refused(400, None, f"{branch} is not a branch")
        if header.get("parentCommit") not in (None, tip.oid):
            raise Refused(412, None, f"A commit has happened since. Please refresh and try again. Tip: {tip.oid}")
        tree = dict(tip.tree)
        for line in lines[1:]:
            changed(exchange, repo, tree, line["key"], line["value"])
        done = repo.add_commit(branch, tree, header["summary"], header.get("description", ""))
    url = f"{exchange.hub.url}/{repo_id}/commit/{done.oid}"
    exchange.reply(200, {"success": True, "commitOid": done.oid, "commitUrl": url, "hookOutput": ""})


LFS = r"/lfs/([^/]+/[^/]+)/([0-9a-f]{64})"
ROUTES = (
    ("POST", MODEL + r"/preupload/([^/]+)", preupload),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", LFS, lfs_put),
    ("PUT", LFS + r"/part/(\d+)/(\d+)", lfs_part),
    ("POST", LFS + r"/complete/(\d+)", lfs_complete),
    ("POST", LFS + r"/verify", lfs_verify),
    ("GET", MODEL + r"/xet-(read|write)-token/([^/]+)", xet_token),
    ("POST", MODEL + r"/commit/([^/]+)", commit),
)

"""What a repository is asked and told apart from contents: info, tree, refs, branches, tags, settings, history."""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from hub_standin.exchange import Exchange
from hub_standin.repos import Commit, Entry, Refused, lfs_pointer

MODEL = r"/api/models/([^/]+/[^/]+)"


def date_text(when: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(when))


def lfs_record(exchange: Exchange, entry: Entry) -> dict[str, Any]:
    oid = entry.sha256
    if exchange.fault and exchange.fault.kind == "checksum":
        oid = ("0" if oid[0] != "0" else "1") + oid[1:]
    return {"oid": oid, "size": entry.size, "pointerSize": len(lfs_pointer(entry.sha256, entry.size))}


def file_record(exchange: Exchange, path: str, entry: Entry) -> dict[str, Any]:
    record: dict[str, Any] = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
    if entry.lfs:
        record["lfs"] = lfs_record(exchange, entry)
    if entry.xet:
        record["xetHash"] = entry.xet
    return record


def folder_record(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}


def folders_of(tree: Mapping[str, Entry]) -> set[str]:
    parts = [path.split("/")[:-1] for path in tree]
    return {"/".join(names[:depth]) for names in parts for depth in range(1, len(names) + 1)}


def info(exchange: Exchange, repo_id: str, revision: str = "main") -> None:
    repo = exchange.repo(repo_id)
    commit = repo.at(revision)
    siblings = []
    for path, entry in commit.tree.items():
        record: dict[str, Any] = {"rfilename": path}
        if exchange.query.get("blobs"):
            record |= {"size": entry.size, "blobId": entry.oid}
            if entry.lfs:
                lfs = lfs_record(exchange, entry)
                record["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
        siblings.append(record)
    fields = {"_id": repo_id, "id": repo_id, "modelId": repo_id, "author": repo_id.split("/", 1)[0], "sha": commit.oid}
    fields |= {"private": repo.private, "gated": repo.gated, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
    dates = {"createdAt": date_text(repo.created), "lastModified": date_text(commit.date)}
    exchange.reply(200, {**fields, **dates, "siblings": siblings})


def tree(exchange: Exchange, repo_id: str, revision: str, folder: str = "") -> None:
    files = exchange.repo(repo_id).at(revision).tree
    folders = folders_of(files)
    if folder and folder not in folders:
        raise Refused(404, "EntryNotFound", f'Folder "{folder}" not found')
    prefix = f"{folder}/" if folder else ""
    deep = exchange.query.get("recursive", "").lower() in ("true", "1")
    wanted = [path for path in sorted(folders | set(files)) if path.startswith(prefix)]
    wanted = [path for path in wanted if deep or "/" not in path.removeprefix(prefix)]
    start = int(exchange.query.get("cursor", 0))
    stop = start + exchange.hub.page_size
    page = [file_record(exchange, p, files[p]) if p in files else folder_record(p) for p in wanted[start:stop]]
    headers = {}
    if stop < len(wanted):
        query = urllib.parse.urlencode(exchange.query | {"cursor": str(stop)})
        headers["Link"] = f'<{exchange.hub.url}{exchange.path_text}?{query}>; rel="next"'
    exchange.reply(200, page, headers)


def paths_info(exchange: Exchange, repo_id: str, revision: str) -> None:
    body = exchange.body()
    asked = json.loads(body) if body.startswith(b"{") else urllib.parse.parse_qs(body.decode())
    files = exchange.repo(repo_id).at(revision).tree
    folders = folders_of(files)
    found = [file_record(exchange, path, files[path]) for path in asked.get("paths", []) if path in files]
    exchange.reply(200, found + [folder_record(path) for path in asked.get("paths", []) if path in folders])


def refs(exchange: Exchange, repo_id: str) -> None:
    repo = exchange.repo(repo_id)

    def records(names: Mapping[str, str], kind: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in names.items()]

    found = {"branches": records(repo.branches, "heads"), "tags": records(repo.tags, "tags"), "converts": []}
    exchange.reply(200, found | {"pullRequests": []})


def create_branch(exchange: Exchange, repo_id: str, branch: str) -> None:
    repo = exchange.repo(repo_id, write=True)
    start = exchange.json().get("startingPoint", "main")
    with repo.lock:
        if branch in repo.branches:
            raise Refused(409, None, f"Reference refs/heads/{branch} already exists")
        repo.branches[branch] = repo.at(start).oid
    exchange.reply(200, {})


def delete_branch(exchange: Exchange, repo_id: str, branch: str) -> None:
    repo = exchange.repo(repo_id, write=True)
    with repo.lock:
        if branch == "main":
            raise Refused(403, None, "Cannot delete the main branch")
        if repo.branches.pop(branch, None) is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {branch}")
    exchange.reply(200, {})


def create_tag(exchange: Exchange, repo_id: str, revision: str) -> None:
    repo = exchange.repo(repo_id, write=True)
    name = exchange.json()["tag"]
    with repo.lock:
        if name in repo.tags:
            raise Refused(409, None, f"Tag reference exists already: {name}")
        repo.tags[name] = repo.at(revision).oid
    exchange.reply(200, {})


def delete_tag(exchange: Exchange, repo_id: str, tag: str) -> None:
    repo = exchange.repo(repo_id, write=True)
    with repo.lock:
        if repo.tags.pop(tag, None) is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {tag}")
    exchange.reply(200, {})


def settings(exchange: Exchange, repo_id: str) -> None:
    repo, asked = exchange.repo(repo_id, write=True), exchange.json()
    with repo.lock:
        if "gated" in asked:
            repo.gated = asked["gated"]
            repo.remember("gated")
        if "visibility" in asked or "private" in asked:
            repo.set_visibility(asked.get("visibility") == "private" or bool(asked.get("private")))
    exchange.reply(200, {"private": repo.private, "gated": repo.gated})


def commits(exchange: Exchange, repo_id: str, revision: str) -> None:
    def record(commit: Commit) -> dict[str, Any]:
        fields = {"id": commit.oid, "title": commit.title, "message": commit.message, "date": date_text(commit.date)}
        return {**fields, "authors": [{"user": repo_id.split("/", 1)[0]}]}

    repo = exchange.repo(repo_id)
    exchange.reply(200, [record(commit) for commit in repo.log_of(revision)])


def super_squash(exchange: Exchange, repo_id: str, branch: str) -> None:
    repo = exchange.repo(repo_id, write=True)
    with repo.lock:
        repo.squash(branch, exchange.json().get("message") or "Super-squash branch")
    exchange.reply(200, {})


def auth_check(exchange: Exchange, repo_id: str, write: str | None = None) -> None:
    exchange.repo(repo_id, write=write is not None, contents=True)
    exchange.reply(200, {})


ROUTES = (
    ("GET", MODEL, info),
    ("GET", MODEL + r"/revision/([^/]+)", info),
    ("GET", MODEL + r"/tree/([^/]+)(?:/(.+))?", tree),
    ("POST", MODEL + r"/paths-info/([^/]+)", paths_info),
    ("GET", MODEL + r"/refs", refs),
    ("POST", MODEL + r"/branch/([^/]+)", create_branch),
    ("DELETE", MODEL + r"/branch/([^/]+)", delete_branch),
    ("POST", MODEL + r"/tag/([^/]+)", create_tag),
    ("DELETE", MODEL + r"/tag/([^/]+)", delete_tag),
    ("PUT", MODEL + r"/settings", settings),
    ("GET", MODEL + r"/commits/([^/]+)", commits),
    ("POST", MODEL + r"/super-squash/([^/]+)", super_squash),
    ("GET", MODEL + r"/auth-check(?:/(write))?", auth_check),
)

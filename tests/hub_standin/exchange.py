"""One HTTP request and its answer: framing, the log, and faults on the way in and out."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from hub_standin.faults import Fault
from hub_standin.hub import Account, Hub, Request
from hub_standin.repos import Refused, Repo
from hub_standin.store import CHUNK

HIDDEN = "Repository not found"
RETRY_AFTER = (429, 503)


class CutError(Exception):
    """The connection is to be closed here."""


class Exchange(BaseHTTPRequestHandler):
    """A handler with what routes need; `route` is given by the server."""

    protocol_version = "HTTP/1.1"
    hub: Hub
    host_kind = "hub"
    line: Request
    fault: Fault | None
    path_text: str  # the path as sent, still quoted
    query: dict[str, str]

    def log_message(self, *args: object) -> None:
        """Nothing on stderr."""

    def route(self) -> None:
        raise NotImplementedError

    def handle_one_exchange(self) -> None:
        """Log, meet a fault or carry the request out, and leave the connection ready for the next one."""
        url = urllib.parse.urlsplit(self.path)
        self.path_text, self.query = url.path, dict(urllib.parse.parse_qsl(url.query))
        self._body_left = self._body()
        self._answered = False
        header = self.headers.get("Authorization")
        account = self.hub.accounts.get((header or "").removeprefix("Bearer "))
        name = None if header is None else account.name if account else "unknown"
        started = time.time()
        self.line = Request(self.command, self.path, self.headers.get("Range"), self.host_kind, name, started)
        self.fault = self.hub.faults.take(f"{self.command} {self.path}")
        self.line.fault = self.fault.kind if self.fault else None
        with self.hub.lock:
            self.hub.log.append(self.line)
        try:
            self._carry_out()
            for _ in self._body_left:  # what nobody read would be taken for the next request
                pass
        except (CutError, ConnectionError, TimeoutError):
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(2)
        finally:
            self.line.seconds = time.time() - started

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_one_exchange  # noqa: N815 (names that the library calls)

    def _carry_out(self) -> None:
        try:
            if self.fault and self.fault.status:
                code, message = self.fault.words()
                raise Refused(self.fault.status, code, message)
            self.route()
        except Refused as refused:
            for _ in self._body_left:
                pass
            headers = {"X-Error-Message": refused.message}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            if self.fault and refused.status in RETRY_AFTER:
                headers["Retry-After"] = f"{self.fault.retry_after:g}"
            self.reply(refused.status, {"error": refused.message, **refused.fields}, headers)

    # ---- who asks

    @property
    def account(self) -> Account | None:
        """Whose token came with the request."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        account = self.hub.accounts.get(header.removeprefix("Bearer "))
        if account is None:
            raise Refused(401, None, "Invalid credentials in Authorization header")
        return account

    def repo(self, repo_id: str, *, write: bool = False, contents: bool = False) -> Repo:
        """The repository, if the account may do that with it."""
        account, repo = self.account, self.hub.repos.get(repo_id)
        member = account is not None and repo_id.split("/", 1)[0] in account.namespaces
        if repo is None or (repo.private and not member):
            raise Refused(404 if account else 401, "RepoNotFound", HIDDEN)
        if write and not member:
            raise Refused(403 if account else 401, None, "You don't have the rights to write to this repository")
        if write and account is not None and account.role != "write":
            raise Refused(403, None, "Forbidden: you must use a write token to upload to a repository.")
        if contents and repo.gated and not member and (account is None or account.name not in repo.granted):
            words = "Please log in." if account is None else "You are not in the authorized list."
            message = f"Access to model {repo_id} is restricted. {words}"
            raise Refused(403 if account else 401, "GatedRepo", message)
        return repo

    # ---- what comes

    def _body(self) -> Iterator[bytes]:
        """The body in pieces."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self._receive(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            piece = self._receive(min(left, CHUNK))
            left -= len(piece)
            yield piece

    def _receive(self, most: int) -> bytes:
        """Some of the next `most` bytes of the body, or all of them, as the fault wants it."""
        fault = self.fault
        if fault and fault.kind in ("cut", "stall"):
            most = min(most, max(fault.after_bytes - self.line.bytes_in, 0))
            if not most:
                self._trouble(fault)
        piece = self.rfile.read(most)
        if len(piece) < most:
            raise CutError
        if fault and fault.kind == "corrupt":
            piece = flipped(piece, fault.after_bytes - self.line.bytes_in)
        self._pace(len(piece))
        self.line.bytes_in += len(piece)
        return piece

    def chunks(self) -> Iterator[bytes]:
        """The body, once."""
        return self._body_left

    def body(self) -> bytes:
        return b"".join(self._body_left)

    def json(self) -> Any:
        return json.loads(self.body() or b"{}")

    # ---- what goes

    def reply(self, status: int, data: object = None, headers: Mapping[str, str] | None = None) -> None:
        """Answer with JSON, or with the bytes given."""
        for _ in self._body_left:
            pass
        content = data if isinstance(data, bytes) else b"" if data is None else json.dumps(data).encode()
        self.start(status, len(content), {"Content-Type": "application/json", **(headers or {})})
        self.send(iter([content] if content else []))

    def start(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        """Send the status and the headers."""
        if self.fault and self.fault.kind == "lost":
            raise CutError
        self.line.status = status
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, pieces: Iterator[bytes]) -> None:
        """Send the body, as far as the fault lets it through."""
        if self.command == "HEAD":
            return
        fault = self.fault
        for whole in pieces:
            piece = whole
            if fault and fault.kind == "corrupt" and not self.line.bytes_in:
                piece = flipped(piece, fault.after_bytes - self.line.bytes_out)
            if fault and fault.kind in ("cut", "stall"):
                piece = piece[: max(fault.after_bytes - self.line.bytes_out, 0)]
            self._pace(len(piece))
            self.wfile.write(piece)
            self.line.bytes_out += len(piece)
            if fault and len(piece) < len(whole):
                self._trouble(fault)

    def send_file(self, path: Path, start: int, stop: int) -> None:
        """Send bytes of a file; headers are out. They count as downloaded."""
        if self.command == "HEAD":
            return
        before = self.line.bytes_out
        try:
            with path.open("rb") as file:
                if self.fault is None and stop > start:
                    self.wfile.flush()
                    self.line.bytes_out += self.connection.sendfile(file, start, stop - start)
                else:
                    file.seek(start)
                    sizes = [CHUNK] * ((stop - start) // CHUNK) + [(stop - start) % CHUNK]
                    self.send(file.read(size) for size in sizes if size)
        finally:
            with self.hub.lock:
                self.hub.downloaded_bytes += self.line.bytes_out - before

    def _pace(self, size: int) -> None:
        if self.fault and self.fault.kind == "slow":
            time.sleep(size / self.fault.bytes_per_second)

    def _trouble(self, fault: Fault) -> None:
        """Cut the connection, after having said nothing for a while if that is the fault."""
        if fault.kind == "stall":
            self.hub.stopping.wait(fault.seconds)
        raise CutError


def flipped(piece: bytes, at: int) -> bytes:
    """The bytes with the one at this offset inverted, if it is among them."""
    if not 0 <= at < len(piece):
        return piece
    return piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]

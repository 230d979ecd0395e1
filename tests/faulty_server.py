"""A small HTTP server on 127.0.0.1 that answers as a script of faults says, and a stand-in for a started server."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from quantkit.verify.servers.running import Server

RESET = "reset"  # in the place of an answer: the connection breaks


@dataclass
class Asked:
    """A request as the server saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Script:
    """`answers` go out in order, then `otherwise`: status, headers and a body (JSON, or text as it is), or RESET."""

    answers: list[Any] = field(default_factory=list)
    otherwise: Callable[[Asked], tuple[int, dict[str, str], Any]] = lambda asked: (200, {}, {"ok": True})
    asked: list[Asked] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(script: Script, *, engine: str = "openai", **settings: Any) -> Iterator[Server]:
    """A Server whose answers come from `script`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self.answer(None)

        def do_POST(self) -> None:
            self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def answer(self, body: Any) -> None:
            asked = Asked(self.command, self.path, dict(self.headers), body)
            with script.lock:
                script.asked.append(asked)
                given = script.answers.pop(0) if script.answers else None
            if given == RESET:
                # No lingering: the other side gets a reset, not an orderly end.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                return
            status, headers, content = given or script.otherwise(asked)
            raw = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *arguments: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, address: Any) -> None:
            pass  # the resets

    http = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield Server(engine=engine, url=f"http://127.0.0.1:{http.server_port}", model="m", **settings)
    finally:
        http.shutdown()
        http.server_close()

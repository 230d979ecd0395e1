"""Processes that tests start and look for, and small programs in the place of a server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 30


def wait_until(holds: Callable[[], bool], seconds: float = SECONDS) -> None:
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Say whether the process exists and is more than an entry that nobody has collected."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def with_words(*words: str) -> list[int]:
    """Processes whose command line has all of these words in it; the test's own is not among them."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words) and runs(int(entry.name)):
            found.append(int(entry.name))
    return found


# Listens at the port in its last argument; healthy once it has printed as many lines as the argument before says.
SLOW_SERVER = """
import http.server, sys, threading, time
lines, port = int(sys.argv[-2]), int(sys.argv[-1])
loaded = threading.Event()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if loaded.is_set() else 503)
        self.end_headers()
    def log_message(self, *arguments):
        pass
server = http.server.HTTPServer(("127.0.0.1", port), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
for number in range(lines):
    print("loading part", number, flush=True)
    time.sleep(0.3)
loaded.set()
time.sleep(1000)
"""

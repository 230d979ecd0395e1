"""A program between quantkit and a server: it ends the server, and all processes of it, when its own input closes.

    python keeper.py COMMAND...

The input is a pipe from quantkit. It closes however quantkit ends, SIGKILL included, so nothing is left behind. Uses
the standard library alone and starts in a moment.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

POLL_SECONDS = 0.1
# From SIGTERM to SIGKILL: vLLM's engine ends its workers in about two.
STOP_SECONDS = 10.0
# Exit status for a server that a signal ended is this and the signal's number, as in a shell.
SIGNALLED = 128


def main(command: list[str]) -> int:
    """Run `command` in a session of its own until it ends or the input closes; return its exit status."""
    # Ctrl-C is for quantkit, which then closes the input; whoever asks the keeper to end wants the server to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, frame: asked.append(received))
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    while server.poll() is None and not asked and not _input_closed():
        pass
    status = server.poll()
    end_session(server)
    if status is None:
        return 0
    return status if status >= 0 else SIGNALLED - status


def _input_closed() -> bool:
    """Wait a moment for the input to close; nothing is ever written into it."""
    readable, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
    return bool(readable)


def end_session(server: subprocess.Popen[bytes]) -> None:
    """End every process of the server's session: ask, wait STOP_SECONDS, kill."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        give_up = time.monotonic() + STOP_SECONDS
        asked: set[int] = set()
        while (left := _members(server)) and time.monotonic() < give_up:
            # Those that start while others end are asked too.
            for pid in left - asked:
                _send(pid, how)
            asked |= left
            time.sleep(POLL_SECONDS)
        if not left:
            return


def _members(server: subprocess.Popen[bytes]) -> set[int]:
    """Processes of the server's session that still run, those in process groups of their own included."""
    server.poll()  # collects it, else it would stay as an entry of the process table
    return {int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _session(int(entry)) == server.pid}


def _session(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, _parent, _group, session = status.rpartition(")")[2].split()[:4]
    return int(session) if state not in "ZX" else None


def _send(pid: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The program that keeps a vLLM server ends all of its processes; with a shell in the server's place."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import vllm_server

SECONDS = 20


def test_processes_end_when_the_input_closes(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    # A child that does not listen to its end, as a server's process in the middle of loading.
    script = f"(trap '' TERM; echo $BASHPID; sleep 1000) >>{pids} & echo $$ >>{pids}; wait"
    command = [sys.executable, vllm_server.__file__, "bash", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as keeper:
        _wait(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        running = [int(pid) for pid in pids.read_text().split()]
        assert all(map(_runs, running))
        assert keeper.stdin is not None
        keeper.stdin.close()
        keeper.wait(2 * SECONDS)
    assert not any(map(_runs, running))


def test_keeper_ends_with_the_server() -> None:
    command = [sys.executable, vllm_server.__file__, "bash", "-c", "exit 7"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as keeper:
        assert keeper.wait(SECONDS) == 7


def _wait(until: Callable[[], bool]) -> None:
    give_up = time.monotonic() + SECONDS
    while not until():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    """Say whether the process exists and is more than an entry that nobody has collected."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"

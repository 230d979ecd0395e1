"""The program between quantkit and a server ends all of the server's processes, whatever they do about it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from server_processes import SECONDS, runs, wait_until

from quantkit.verify.servers import keeper

# A child that does not listen to its end, and one in a process group of its own.
STUBBORN = """
import os, signal, subprocess, sys, time
stubborn = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
stubborn += "print(os.getpid(), file=open(sys.argv[1], 'a')); time.sleep(1000)"
subprocess.Popen([sys.executable, "-c", stubborn, sys.argv[1]])
grouped = stubborn.replace("signal.signal", "os.setpgid(0, 0); signal.signal")
subprocess.Popen([sys.executable, "-c", grouped, sys.argv[1]])
print(os.getpid(), file=open(sys.argv[1], "a"))
time.sleep(1000)
"""


@pytest.mark.parametrize("how", ["input", signal.SIGTERM, signal.SIGHUP])
def test_all_processes_end(how: str | signal.Signals, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    # A shorter time than a real server gets before it is killed.
    program = "import sys; from quantkit.verify.servers import keeper; keeper.STOP_SECONDS = 1; "
    program += "sys.exit(keeper.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, sys.executable, "-c", STUBBORN, str(pids)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as kept:
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 3)
        running = [int(pid) for pid in pids.read_text().split()]
        assert all(map(runs, running))
        assert kept.stdin is not None
        if isinstance(how, signal.Signals):
            kept.send_signal(how)
        else:
            kept.stdin.close()
        assert kept.wait(SECONDS) == 0
        assert not any(map(runs, running))


def test_interrupting_the_keeper_leaves_the_server_alone() -> None:
    command = [sys.executable, "-P", keeper.__file__, sys.executable, "-c", "import time; print(1); time.sleep(1000)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as kept:
        assert kept.stdin is not None
        with pytest.raises(subprocess.TimeoutExpired):
            kept.wait(0.5)
        kept.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            kept.wait(0.5)
        kept.stdin.close()
        assert kept.wait(SECONDS) == 0


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -SEGV $$", 128 + signal.SIGSEGV)])
def test_keeper_ends_with_the_server_and_its_status(script: str, status: int) -> None:
    command = [sys.executable, "-P", keeper.__file__, "bash", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as kept:
        assert kept.wait(SECONDS) == status

"""The peak memory of a command, as the system counted it."""

import subprocess
import sys

# The system starts a process's peak with what its parent held when it was forked. So a small process stands between
# this one, which has grown with the tests before, and the command.
BETWEEN = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss * 1024, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run_measured(command: list[str]) -> tuple[int, str]:
    """Run `command`, which must succeed; return its peak resident bytes and its stdout."""
    done = subprocess.run([sys.executable, "-c", BETWEEN, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1]), done.stdout

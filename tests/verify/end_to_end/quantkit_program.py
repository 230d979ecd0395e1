"""The command line in a process of its own, for what several tests of a module share."""

from __future__ import annotations

import subprocess
import sys


def run_quantkit(*arguments: object, codes: tuple[int, ...] = (0,)) -> None:
    """Run it; what it says on stderr is the failure's message when it ends with none of `codes`."""
    command = [sys.executable, "-m", "quantkit", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in codes, f"exit code {done.returncode}: {done.stderr[-3000:]}"

"""Command lines in processes of their own that can be killed: without the seconds that their imports take."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# A process that has imported everything and runs one command line per line of its input in a copy of itself: what is
# to be killed is the run, not four seconds of imports, of the compiler's start and of the interpreter's end.
RUNNER = """
import importlib, json, os, sys
import numpy
import quantkit.cli.app
from quantkit.checkpoint.dequant import dequantize_fp8_blocks
for module in sys.argv[1:]:
    importlib.import_module(module)
dequantize_fp8_blocks(numpy.zeros((1, 1), numpy.uint8), numpy.ones((1, 1), numpy.float32), (1, 1))
for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.argv = ["quantkit", *json.loads(line)]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            quantkit.cli.app.main()
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(end.code or 0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runner:
    """Runs `quantkit` again and again, each in a process of its own that has `modules` imported."""

    def __init__(self, *modules: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __call__(
        self, *arguments: str | Path, wait: Callable[[], None] | None = None, kill: int = signal.SIGKILL
    ) -> int:
        """Exit code of a run; it gets the signal `kill` when `wait` returns, if it still runs then."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(list(map(str, arguments))) + "\n")
        child = int(self._process.stdout.readline())
        if wait is not None:
            wait()
            with suppress(ProcessLookupError):  # it was done before
                os.kill(child, kill)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()

"""Where the fixture checkpoint and llama.cpp's programs are, and running them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "tests" / "fixtures" / "tiny-m2"
LLAMA_QUANTIZE = (
    Path(os.environ.get("QUANTKIT_LLAMA_CPP", ROOT / ".cache" / "llama.cpp")) / "build" / "bin" / "llama-quantize"
)


def run_program(*command: str | Path) -> None:
    """Runs a program; when it fails, the end of what it printed is the failure's message."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} exited with {done.returncode}:\n{done.stdout[-3000:]}"


def run_quantkit(*arguments: str | Path) -> None:
    run_program(sys.executable, "-m", "quantkit", *arguments)

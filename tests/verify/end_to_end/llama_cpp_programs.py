"""Where llama.cpp's own programs are, and how they run on a small, shared machine."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = Path(os.environ.get("QUANTKIT_LLAMA_CPP", ROOT / ".cache" / "llama.cpp")) / "build" / "bin"
# --no-repack: kernels for AMX crash where the kernel of the machine does not allow them.
PLAIN = ("--threads", "1", "--no-repack")

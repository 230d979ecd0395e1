"""Sizes as people write them, and the memory that a run may use."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

from quantkit.errors import BadInput

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY_UNITS = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}

MAX_SIZE = 2**63

# Share of the free memory that a run takes when --memory is not given.
DEFAULT_SHARE = 0.6


def parse_size(text: str, option: str) -> int:
    """Return the bytes that `text` names: "48G" is 48 * 10^9 as in llama.cpp, "48Gi" is 48 * 2^30."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", text.strip().upper())
    units = UNITS | BINARY_UNITS
    if match is None or match[2] not in units or not 0 < float(match[1]) < MAX_SIZE:
        raise BadInput(f"{option} {text!r}: not a size; write for example 8G, 500M or 48Gi")
    return int(float(match[1]) * units[match[2]])


def format_size(nbytes: float) -> str:
    """Decimal size with one digit after the point, as disks and the Hub count."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} TB"


def memory_budget(memory: int | None) -> int:
    """Return the bytes that work items may hold: `memory` (default: a share of what is free) minus what is in use."""
    used = resident()
    return memory - used if memory is not None else int(_free_memory() * DEFAULT_SHARE)


def resident() -> int:
    """Bytes of memory that this process holds now (its peak where the system does not tell the present)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_resident()


def peak_resident() -> int:
    """Largest number of bytes of memory that this process has held."""
    try:
        # Not ru_maxrss where it can be helped: that begins with what the parent held when it forked.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _free_memory() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""GPUs as people write them, 4xH100, and whether a model fits into their memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.errors import BadInput

GB = 10**9
# What is sold as so many GB; drivers, keys and values and activations take their part of it.
MEMORY_GB = {
    "A100": 80,
    "H100": 80,
    "H20": 96,
    "H200": 141,
    "B200": 180,
    "B300": 270,
    "L40S": 48,
    "A6000": 48,
    "RTX6000": 96,
    "RTX4090": 24,
    "RTX5090": 32,
}
# Share of it that weights may take, so that a server starts with room for some requests.
FOR_WEIGHTS = 0.85


@dataclass(frozen=True)
class Gpus:
    """So many of a kind; `memory` in bytes of one, None for a kind that is not in the table."""

    count: int
    kind: str = ""
    memory: int | None = None


def parse_gpus(text: str) -> Gpus:
    """Return what "4xH100", "H200" or "8" name. Raises BadInput for anything else."""
    match = re.fullmatch(r"(?:(\d{1,4})(?:\s*[x*]\s*(?=[A-Za-z])|$))?([A-Za-z][A-Za-z0-9 _-]*)?", text.strip())
    if match is None or not (match[1] or match[2]) or match[1] == "0" * len(match[1] or "-"):
        raise BadInput(f"--gpus {text!r}: not a number of GPUs; write for example 4xH100, or 4")
    kind = re.sub(r"[ _-]", "", match[2] or "").upper()
    size = MEMORY_GB.get(kind)
    return Gpus(int(match[1] or 1), kind, size * GB if size else None)


def check_memory(nbytes: int, gpus: Gpus, legal: Sequence[int]) -> None:
    """Raise BadInput where weights of `nbytes` leave no room on these GPUs; `legal` are numbers that may be given."""
    if gpus.memory is None:
        return
    room = gpus.memory * FOR_WEIGHTS
    if nbytes > gpus.count * room:
        enough = [f"--gpus {count}x{gpus.kind}" for count in legal if nbytes <= count * room][:1]
        raise BadInput(
            f"--gpus {gpus.count}x{gpus.kind}: the weights take {nbytes / GB:.0f} GB, {gpus.count} of "
            f"{gpus.memory / GB:.0f} GB have room for {gpus.count * room / GB:.0f}; "
            f"give {' or '.join([*enough, 'a smaller model'])}"
        )

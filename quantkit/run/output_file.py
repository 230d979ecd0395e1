"""What a run knows of a file before its first byte of data."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class OutputFile(Protocol):
    """A file whose size is known before its data: its final path, everything before the data, and all bytes."""

    @property
    def path(self) -> Path: ...

    @property
    def header(self) -> bytes: ...

    @property
    def offsets(self) -> dict[str, int]:
        """Where each tensor starts."""
        ...

    @property
    def size(self) -> int: ...

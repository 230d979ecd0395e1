"""Files that have their final name only when they are complete."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from quantkit.errors import QuantkitError

PARTIAL = ".partial"


def partial_path(path: Path) -> Path:
    """Where the file for `path` is until it is complete."""
    return path.with_name(path.name + PARTIAL)


def write_aside(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a file under its partial name, force it to disk and give it its name; an existing one is replaced."""
    aside = partial_path(path)
    try:
        with aside.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> QuantkitError:
    """What is said when the file for `path` cannot be written."""
    return QuantkitError(
        f"{partial_path(path)}: cannot be written ({error.strerror}); mend that and repeat the same command"
    )

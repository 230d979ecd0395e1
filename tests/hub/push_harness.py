"""Starts `push_run.py` against a stand-in Hub, and what its files must be."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import push_run
import pytest
from hub_standin import TestHub

from quantkit.errors import QuantkitError

REPO = "me/M-GGUF"
COUNT, SIZE = 4, 300_000


def start(hub: TestHub, folder: Path, *, count: int = COUNT, size: int = SIZE, **options: Any) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, push_run.__file__, REPO, str(folder), str(count), str(size), json.dumps(options)],
        env=hub.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def push(folder: Path, *, count: int = COUNT, **options: Any) -> dict[str, Any]:
    """A run in this process, whose client points at the Hub; what it says."""
    folder.mkdir(exist_ok=True)
    return push_run.main(REPO, folder, count, SIZE, options)


def refused(folder: Path, code: int = 2, **options: Any) -> str:
    """A run in this process that must end with `code` and one line, which is returned."""
    with pytest.raises(QuantkitError) as error:
        push(folder, **options)
    assert error.value.exit_code == code, error.value
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


def wanted(count: int = COUNT, size: int = SIZE) -> dict[str, str]:
    """The repo's files after a run: path -> sha256."""
    files = {f"M-Q4_K_M/{name}": push_run.content(n, size) for n, name in enumerate(push_run.names(count))}
    files |= {"README.md": push_run.CARD.encode(), "LICENSE": b"the licence\n"}
    return {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}


def uploads(hub: TestHub) -> list[str]:
    """sha256 of every large file whose bytes went up, once per time (basic LFS transfers that succeeded)."""
    done = [one for one in hub.requests(r"^PUT /lfs/") if one.status == 200]
    return [one.path.partition("?")[0].rpartition("/")[2] for one in done]

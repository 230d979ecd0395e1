"""The 62-layer synthetic checkpoint: as many GGUF tensors as M2.7 has, in small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def layers62(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(layers=62, experts=12, shard_bytes=20_000_000)

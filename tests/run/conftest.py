"""The 62-layer synthetic checkpoint: as many GGUF tensors as M2.7 has, in small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def layers62(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers62") / "checkpoint"
    return make_checkpoint(folder, layers=62, experts=10, heads=12, kv_heads=2, shard_bytes=20_000_000)

"""A GGUF of the fixture, whole and split."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf.convert import write_gguf
from quantkit.run.gguf.plan import DEFAULT_SPLIT


def write(checkpoint: Path, out: Path, split_max_size: int) -> tuple[Path, ...]:
    recipe = recipe_from_options("q8_0")
    return write_gguf(checkpoint, out, recipe, split_max_size=split_max_size, threads=1, quiet=True).outputs


@pytest.fixture(scope="session")
def tiny_gguf(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tiny_m2, tmp_path_factory.mktemp("gguf") / "tiny.gguf", DEFAULT_SPLIT)[0]


@pytest.fixture(scope="session")
def split_gguf(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    return write(tiny_m2, tmp_path_factory.mktemp("split") / "tiny.gguf", 4_000_000)

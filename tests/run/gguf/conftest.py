"""The checkpoint of the tests of compensated runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from compensated_runs import SIZE, Case
from harness import MakeCheckpoint


@pytest.fixture(scope="session")
def layers3(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("layers3") / "checkpoint", **SIZE)


@pytest.fixture
def case(layers3: Path, tmp_path: Path) -> Case:
    (tmp_path / "out").mkdir()
    return Case(layers3, tmp_path / "out")

"""The stand-in Hub as fixtures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hub_standin.processes import TestHub, make_hub
from hub_standin.server import serve


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestHub]:
    """An empty stand-in Hub in LFS mode: everything goes by HTTP, so that faults reach all of it."""
    with serve(make_hub(tmp_path_factory.mktemp("hub"), xet=False)) as hub:
        yield hub


@pytest.fixture
def xet_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestHub]:
    """An empty stand-in Hub in Xet mode, as users meet it: large files go through hf_xet and a local store."""
    with serve(make_hub(tmp_path_factory.mktemp("xet-hub"), xet=True)) as hub:
        yield hub

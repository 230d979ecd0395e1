"""Fixtures of the tests about uploads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import publishing
import pytest
from hub_standin import TestHub


@pytest.fixture(scope="session")
def made(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> publishing.Made:
    """Quantizations of the fixture model. Tests that write into them copy them."""
    return publishing.make(tmp_path_factory.mktemp("made"), tiny_m2)


@pytest.fixture
def lfs_hub(hub: TestHub, client_of: Callable[..., None]) -> TestHub:
    """A Hub in LFS mode that the client in this process talks to; files go up in one request each."""
    hub.multipart_over = 1 << 30
    client_of(hub)
    return hub


@pytest.fixture(params=["hub", "xet_hub"])
def either_hub(request: pytest.FixtureRequest, client_of: Callable[..., None]) -> TestHub:
    """Both modes, one after the other, for the client in this process."""
    hub: TestHub = request.getfixturevalue(request.param)
    client_of(hub)
    return hub

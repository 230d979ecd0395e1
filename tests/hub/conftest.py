"""The Hub's client in this process, pointed at a stand-in Hub."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hub_runs import desk  # noqa: F401  (fixture)
from hub_standin import TestHub
from upload_fixtures import either_hub, lfs_hub, made  # noqa: F401  (fixtures)

ClientOf = Callable[..., None]


@pytest.fixture
def client_of(monkeypatch: pytest.MonkeyPatch) -> ClientOf:
    """Point the client at a stand-in Hub as its environment would, with waits too short to notice."""
    from huggingface_hub import close_session, constants

    from quantkit.hub import client

    def point(hub: TestHub, token: str | None = "") -> None:
        home = hub.home
        values = {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_XET_CACHE": str(home / "xet"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_DISABLE_XET": hub.xet is None,
            "HF_HUB_OFFLINE": False,
        }
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token or hub.write_token)
        close_session()

    return point

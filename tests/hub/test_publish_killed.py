"""A publication that is killed at any moment goes on where it was; no token is left anywhere."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hub_standin import TestHub
from publishing import GGUF_REPO, Made
from push_harness import uploads

KILLS = 4
PUBLISH = """
import sys
from pathlib import Path
from quantkit.hub import client
from quantkit.hub.publish import Wanted, prepare, publish
client.FIRST_WAIT = 0.02
wanted = Wanted((Path(sys.argv[1]),), sys.argv[2], public=True, tag="v1", unverified=True)
print(publish(wanted, prepare(wanted), print))
"""


def start(hub: TestHub, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PUBLISH, str(folder), GGUF_REPO],
        env=hub.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def folder(made: Made, tmp_path: Path) -> Path:
    """GGUFs in parts, and one that is whole."""
    target = tmp_path / "ggufs"
    target.mkdir()
    for path in (*made.parts, made.q4_k_m, made.ggufs / "LICENSE"):
        shutil.copyfile(path, target / path.name)
    return target


def test_killed_at_random_moments(hub: TestHub, folder: Path) -> None:
    hub.multipart_over = 1 << 30  # so that a request is a whole file
    moments = random.Random(7)
    texts = []
    for _ in range(KILLS):
        first, requests = len(hub.log), moments.randint(3, 30)
        process = start(hub, folder)
        while process.poll() is None and len(hub.log) < first + requests:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        process.kill()
        texts.append("".join(process.communicate()))
    process = start(hub, folder)
    texts.append("".join(process.communicate(timeout=120)))
    assert process.returncode == 0, texts[-1]
    sent = Counter(uploads(hub))
    assert set(sent.values()) == {1}
    assert set(sent) == {sha256 for path, sha256 in hub.files(GGUF_REPO).items() if path.endswith((".gguf", ".png"))}
    assert all(files == hub.files(GGUF_REPO) for files in hub.public_files(GGUF_REPO))
    assert not hub.repos[GGUF_REPO].private
    assert hub.repos[GGUF_REPO].tags.keys() == {"v1"}
    assert list(hub.repos[GGUF_REPO].branches) == ["main"]
    assert {path.name for path in folder.parent.iterdir()} == {"ggufs"}
    downloaded = hub.checkout(GGUF_REPO, folder.parent / "checkout")
    for path in folder.glob("*.gguf"):
        (there,) = downloaded.rglob(path.name)
        assert there.read_bytes() == path.read_bytes()
    _no_token(hub, folder.parent, texts)


def _no_token(hub: TestHub, folder: Path, texts: list[str]) -> None:
    secrets = [hub.write_token.encode(), hub.read_token.encode()]
    contents = [text.encode() for text in texts]
    contents += [path.read_bytes() for path in (*folder.rglob("*"), *hub.home.rglob("*")) if path.is_file()]
    assert not any(secret in content for secret in secrets for content in contents)


def test_no_token_in_errors_and_journal(hub: TestHub, folder: Path) -> None:
    from hub_standin import Fault

    hub.fail(Fault("POST .*/commit/main", "403"))
    process = start(hub, folder)
    texts = list(process.communicate(timeout=120))
    assert process.returncode != 0
    assert (folder.parent / "ggufs.publish").exists()
    _no_token(hub, folder.parent, texts)

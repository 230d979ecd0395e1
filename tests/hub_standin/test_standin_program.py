"""The stand-in as a program of its own, and llama.cpp as a client of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hub_standin import TestHub

TESTS = Path(__file__).resolve().parents[1]
LLAMA_CPP = Path(os.environ.get("QUANTKIT_LLAMA_CPP", TESTS.parent / ".cache" / "llama.cpp"))
LLAMA_SERVER = LLAMA_CPP / "build" / "bin" / "llama-server"
START_SECONDS = 60
OPTIONS = ("-c", 256, "--no-warmup", "--no-repack")  # repacking may use AMX, which virtual machines claim to have
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def program(*arguments: object) -> Iterator[dict[str, str]]:
    """What the stand-in says when it is up, until it is ended."""
    command = [sys.executable, "-m", "hub_standin", *map(str, arguments)]
    with subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def test_program_serves_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.bin").write_bytes(b"weights")
    with program("--folder", tmp_path / "state", "--add", f"org/model={tmp_path / 'model'}") as said:
        asked = urllib.request.Request(f"{said['url']}/org/model/resolve/main/model.bin")
        with _opener.open(asked, timeout=START_SECONDS) as answer:
            assert answer.read() == b"weights"
        asked = urllib.request.Request(
            f"{said['url']}/api/whoami-v2", headers={"Authorization": f"Bearer {said['read']}"}
        )
        with _opener.open(asked, timeout=START_SECONDS) as answer:
            assert json.load(answer)["auth"]["accessToken"]["role"] == "read"


@contextmanager
def llama_server(hub: TestHub, *arguments: object, log: Path) -> Iterator[str]:
    """The address of a llama-server that is ready; its environment is a client's."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [LLAMA_SERVER, *map(str, arguments), "--host", "127.0.0.1", "--port", str(port)]
    environment = hub.environment()
    with log.open("wb") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as process:
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    with _opener.open(f"{url}/health", timeout=5):
                        break
                except OSError:
                    time.sleep(0.1)
            else:
                raise AssertionError(log.read_text(errors="replace")[-4000:])
            yield url
        finally:
            process.kill()


@pytest.mark.full
def test_llama_server_pulls_the_pushed_parts_and_serves_them(hub: TestHub, tiny_m2: Path, tmp_path: Path) -> None:
    """`-hf` asks HF_ENDPOINT for the refs, the tree of the commit and every part, with the token of a private repo."""
    source = shutil.copytree(tiny_m2, tmp_path / "MiniMax-M2.7")  # the card says what it was made of
    done = hub.run("gguf", "q8_0", source, "--push", "me/Tiny-GGUF", "--split-max-size", "2M")
    assert done.returncode == 0, done.stderr
    parts = [path.rpartition("/")[2] for path in hub.files("me/Tiny-GGUF") if path.endswith(".gguf")]
    assert len(parts) > 1
    assert hub.repos["me/Tiny-GGUF"].private
    with llama_server(hub, "-hf", "me/Tiny-GGUF:Q8_0", *OPTIONS, log=tmp_path / "log") as url:
        body = json.dumps({"prompt": "def ", "n_predict": 4, "temperature": 0}).encode()
        asked = urllib.request.Request(f"{url}/completion", body, {"Content-Type": "application/json"})
        with _opener.open(asked, timeout=START_SECONDS) as answer:
            assert json.load(answer)["tokens_predicted"] == 4
    assert {line.path.rsplit("/", 1)[1] for line in hub.requests("GET .*/resolve/.*-of-")} == set(parts)
    assert {line.token for line in hub.requests("GET .*me/Tiny-GGUF/resolve/.*-of-")} == {"me"}

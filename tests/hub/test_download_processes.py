"""Whole client processes: killed and run again, two at once, interrupted, and what they print."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from downloading import in_order, read, spooled, watched
from hub_standin import Fault, TestHub

from quantkit.checkpoint.index import open_checkpoint

# Streams a source in: cache size, seconds to think about each tensor. Prints the SHA-256 of all tensors.
READER = """
import hashlib, sys, time
from pathlib import Path
from quantkit.checkpoint.index import open_checkpoint
from quantkit.hub.download.source import open_source

source, cache_size, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
digest = hashlib.sha256()
with open_source(source, cache_size, quiet=False) as folder:
    checkpoint = open_checkpoint(folder)
    entries = sorted(checkpoint.tensors.values(), key=lambda entry: (entry.path, entry.offset))
    checkpoint.files.expect(entries)
    for entry in entries:
        buffer = bytearray(entry.nbytes)
        done = 0
        while done < entry.nbytes:
            shard = checkpoint.shard_name(entry.path)
            done += checkpoint.files.read_into(shard, memoryview(buffer)[done:], entry.offset + done)
        digest.update(buffer)
        time.sleep(seconds)
        checkpoint.files.release([entry])
print(digest.hexdigest())
"""
SOURCE = "hub:MiniMaxAI/Small"
CAP = 2_000_000
WHOLE = r"^GET .*/resolve/.*\.safetensors$"

pytestmark = pytest.mark.timeout(120)


def start(hub: TestHub, cap: int, seconds: float, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", READER, SOURCE, str(cap), str(seconds)],
        env=hub.environment(**more),
        cwd=hub.home.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def digest_of(folder: Path) -> str:
    checkpoint = open_checkpoint(folder)
    digest = hashlib.sha256()
    for entry in in_order(checkpoint):
        digest.update(read(checkpoint, entry))
    return digest.hexdigest()


def checked(home: Path) -> set[str]:
    """Shards that a run noted as right."""
    notes = list(home.rglob("checked.json"))
    return set(json.loads(notes[0].read_text())) if notes else set()


def test_killed_and_run_again(hub: TestHub, small_checkpoint: Path) -> None:
    hub.add_repo("MiniMaxAI/Small", small_checkpoint)
    run = start(hub, CAP, 0.5)
    while len(checked(hub.home)) < 3:
        assert run.poll() is None
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    held = checked(hub.home) & set(spooled(hub.home))
    assert held
    before = len(hub.log)
    with watched(hub.home) as peak:
        out, err = start(hub, CAP, 0).communicate()
    assert (out.strip(), err.count("\n")) == (digest_of(small_checkpoint), 1)
    again = [line.path.rpartition("/")[2] for line in hub.log[before:] if line.method == "GET" and line.range is None]
    assert held.isdisjoint(again)
    assert peak.value <= CAP
    assert list(hub.home.rglob("weights-?")) == []


def test_two_at_once(hub: TestHub, small_checkpoint: Path) -> None:
    hub.add_repo("MiniMaxAI/Small", small_checkpoint)
    runs = [start(hub, CAP, 0.01) for _ in range(2)]
    outputs = [run.communicate(timeout=60)[0].strip() for run in runs]
    assert outputs == [digest_of(small_checkpoint)] * 2
    assert list(hub.home.rglob("weights-?")) == []


@pytest.mark.parametrize("passed", [0, 7], ids=["headers", "shards"])
def test_interrupted_while_it_waits_for_the_network(hub: TestHub, small_checkpoint: Path, passed: int) -> None:
    hub.add_repo("MiniMaxAI/Small", small_checkpoint)
    hub.fail(Fault(WHOLE, "stall", times=99, skip=passed, after_bytes=1000))
    run = start(hub, CAP, 0, HF_HUB_DOWNLOAD_TIMEOUT="3")
    while len(hub.requests(WHOLE)) < passed + 2:
        assert run.poll() is None
        time.sleep(0.01)
    began = time.monotonic()
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert run.returncode != 0
    assert "KeyboardInterrupt" in err


@pytest.mark.parametrize("mode", ["hub", "xet_hub"])
def test_one_line_and_no_progress_bar_whatever_the_client_is_told(
    mode: str, request: pytest.FixtureRequest, small_checkpoint: Path
) -> None:
    hub: TestHub = request.getfixturevalue(mode)
    hub.add_repo("MiniMaxAI/Small", small_checkpoint)
    if mode == "hub":
        hub.fail(Fault(WHOLE, "503", times=2, skip=7))
    out, err = start(hub, CAP, 0, HF_HUB_DISABLE_PROGRESS_BARS="0", TQDM_POSITION="-1").communicate()
    assert out.strip() == digest_of(small_checkpoint)
    commit = hub.repos["MiniMaxAI/Small"].at("main").oid
    assert err == f"MiniMaxAI/Small at {commit[:12]}: 7 shards, 0.0 GB, streamed in\n"


def test_no_token_is_left_anywhere(hub: TestHub, small_checkpoint: Path) -> None:
    hub.add_repo("MiniMaxAI/Small", small_checkpoint, private=True)
    hub.sign_links = 60.0
    hub.fail(Fault("GET /content/", "503", times=200, skip=9))
    out, err = start(hub, CAP, 0).communicate()
    secrets = [hub.write_token, "Signature="]
    kept = [path.read_bytes() for path in hub.home.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    for secret in secrets:
        assert secret not in out + err.replace(READER, "")
        assert all(secret.encode() not in content for content in kept)

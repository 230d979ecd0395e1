"""Runs of `quantkit` against a stand-in Hub, each in a process of its own that can be killed, and what they leave."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import CliResult, MakeCheckpoint
from hub_standin import Fault, TestHub, serve
from hub_standin.processes import make_hub

MODEL = "MiniMax-M2.7"
SOURCE = f"MiniMaxAI/{MODEL}"
# Made anew for every upload: they tell of other quantizations, too. What a run adds beside its own output.
CARD, RECORDS, LICENCE = "README.md", "quantkit/", "LICENSE"
ORIGIN = "source.json"  # of a folder: which commit of which repo it was made of
REPORT = ".quantkit.json"  # of a compensated GGUF, among the records
# Shards of INT4 folders: the real ones have up to 5 GB.
SHARD_BYTES = 600_000

# A process with the Hub's settings that has imported everything, and runs one command line per line of its input in a
# copy of itself: imports take longer than a run. Waits between attempts are too short to notice.
RUNNER = """
import functools, importlib, json, os, sys
import numpy
import quantkit.cli.app
from quantkit.checkpoint.dequant import dequantize_fp8_blocks
from quantkit.hub import client
for module in ("calibration.tokens", "run.gguf.compensate", "run.int4.quantize", "run.int4.calibrated_pass"):
    importlib.import_module(f"quantkit.{module}")
for module in ("pushed", "download.source"):
    importlib.import_module(f"quantkit.hub.{module}")
import quantkit.run.int4.quantize as int4
dequantize_fp8_blocks(numpy.zeros((1, 1), numpy.uint8), numpy.ones((1, 1), numpy.float32), (1, 1))
client.FIRST_WAIT = 0.01
lay_out = int4.lay_out
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(job["folder"])
        os.environ.update(job["environment"])
        int4.lay_out = functools.partial(lay_out, max_bytes=job["shard_bytes"])
        for stream in (1, 2):
            os.dup2(os.open(job["streams"][stream - 1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.argv = ["quantkit", *job["arguments"]]
        code = 99
        try:
            quantkit.cli.app.main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runs:
    """`quantkit` in processes of their own, whose client speaks to the stand-in `hub`."""

    def __init__(self, hub: TestHub, folder: Path) -> None:
        self.hub = hub
        self._streams = [str(folder / name) for name in ("out", "err")]
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUNNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=hub.environment(),
        )

    def __call__(
        self,
        folder: Path,
        *arguments: object,
        until: Callable[[], object] | None = None,
        shard_bytes: int = SHARD_BYTES,
        **environment: str,
    ) -> CliResult:
        """A run in the working directory `folder`; it is killed when `until` returns, if it still runs then.

        `shard_bytes` is the largest size of an INT4 folder's shard.
        """
        job = {
            "folder": str(folder),
            "arguments": [str(argument) for argument in arguments],
            "environment": environment,
            "shard_bytes": shard_bytes,
            "streams": self._streams,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        child = int(self._process.stdout.readline())
        if until is not None:
            until()
            with suppress(ProcessLookupError):  # it was done before
                os.kill(child, signal.SIGKILL)
        code = int(self._process.stdout.readline())
        return CliResult(code, *(Path(stream).read_text() for stream in self._streams))

    def done(self, folder: Path, *arguments: object, **settings: Any) -> CliResult:
        """A run that must succeed."""
        result = self(folder, *arguments, **settings)
        assert result.code == 0, result.err
        return result

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True)
class Desk:
    """One stand-in Hub with its runs, for all tests: they take repos of their own and end the faults they set."""

    hub: TestHub
    runs: Runs
    folder: Path

    def forget(self) -> None:
        """Delete what earlier runs kept of the Hub on the disk."""
        shutil.rmtree(self.hub.home)
        self.hub.home.mkdir()

    def add_source(self, name: str, checkpoint: Path) -> Path:
        """Put a checkpoint on the Hub as MiniMaxAI/`name`; return a local folder with the same last component."""
        local = self.folder / "sources" / name
        if not local.exists():
            shutil.copytree(checkpoint, local, ignore=shutil.ignore_patterns("heldout"))
            self.hub.add_repo(f"MiniMaxAI/{name}", local)
        return local

    def expected(self, *arguments: object, source: str = MODEL, shard_bytes: int = SHARD_BYTES) -> dict[str, str]:
        """What a run from the local folder writes: sha256 by the place that it has in a repo. Made once."""
        text = [str(argument) for argument in arguments]
        out = self.folder / "local" / hashlib.sha256(json.dumps([source, shard_bytes, text]).encode()).hexdigest()[:16]
        if not out.exists():
            out.mkdir(parents=True)
            self.runs.done(out, *text, self.folder / "sources" / source, shard_bytes=shard_bytes)
        files = {place_of(path): sha256_of(path) for path in files_below(out)}
        return {path: sha256 for path, sha256 in files.items() if path != LICENCE}

    def pushed(self, repo: str) -> dict[str, str]:
        """What the repo holds beside card and licence, which must be there, and the records of where it comes from."""
        files = self.hub.files(repo)
        for along in (CARD, LICENCE):
            del files[along]
        files.pop(ORIGIN, None)
        return {path: sha for path, sha in files.items() if not path.startswith(RECORDS) or path.endswith(REPORT)}

    def uploaded_again(self, repo: str) -> list[str]:
        """Contents that went up by LFS although a commit of the repo had them."""
        committed: dict[str, float] = {}
        for commit in self.hub.repos[repo].commits.values():
            for entry in commit.tree.values():
                committed[entry.sha256] = min(committed.get(entry.sha256, commit.date), commit.date)
        found = [(put, re.findall(r"[0-9a-f]{64}", put.path)[0]) for put in self.hub.requests(rf"^PUT /lfs/{repo}/")]
        return [put.path for put, sha256 in found if put.when > committed.get(sha256, put.when)]


@pytest.fixture(scope="session")
def desk(tiny_m2: Path, make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A stand-in Hub in LFS mode with a small checkpoint, MiniMaxAI/MiniMax-M2.7."""
    folder = tmp_path_factory.mktemp("desk")
    with serve(make_hub(folder, xet=False)) as hub:
        runs = Runs(hub, folder)
        try:
            desk = Desk(hub, runs, folder)
            desk.add_source(MODEL, licensed(make_checkpoint(folder / "made" / MODEL, layers=3), tiny_m2))
            yield desk
        finally:
            runs.close()


def licensed(checkpoint: Path, tiny_m2: Path) -> Path:
    """Add what a synthetic checkpoint lacks and publishing asks for."""
    shutil.copyfile(tiny_m2 / LICENCE, checkpoint / LICENCE)
    return checkpoint


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def place_of(path: Path) -> str:
    """Where an output's file is in the repo: parts of a GGUF in the quant's folder, almost all else at its top."""
    if path.name.endswith(REPORT):
        return RECORDS + path.name
    prefix, parts, _ = path.name.partition("-00")
    return f"{prefix}/{path.name}" if parts and path.suffix == ".gguf" else path.name


@contextmanager
def trouble(hub: TestHub, *faults: Fault, **knobs: object) -> Iterator[None]:
    """Faults, and knobs of the stand-in turned, until the end of the context."""
    before = {name: getattr(hub, name) for name in knobs}
    for name, value in knobs.items():
        setattr(hub, name, value)
    hub.fail(*faults)
    try:
        yield
    finally:
        hub.faults.clear()
        for name, value in before.items():
            setattr(hub, name, value)


def after_requests(hub: TestHub, count: int, seconds: float) -> Callable[[], None]:
    """Waits for so many requests from now on, but not long, and then for so many seconds."""
    first = len(hub.log)

    def wait() -> None:
        deadline = time.monotonic() + 2
        while len(hub.log) < first + count and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(seconds)

    return wait

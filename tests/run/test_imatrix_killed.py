"""A calibration that was killed at any moment ends in the bytes of an undisturbed one when it is repeated."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from imatrix_runs import NAMES, left, outputs, token_set
from safetensors.numpy import save_file

KILLS = 20

# A process that has imported everything and runs one command line per line of its input in a copy of itself: what is
# to be killed is the run, not four seconds of imports.
RUNNER = """
import json, os, sys
import quantkit.cli.app, quantkit.run.imatrix, quantkit.calibration.corpora.build
for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.argv = ["quantkit", *json.loads(line)]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        quantkit.cli.app.main()
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runner:
    """Runs `quantkit imatrix` again and again, each in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __call__(self, *arguments: str | Path, kill_after: float | None = None) -> int:
        """Exit code of a run that gets SIGKILL after `kill_after` seconds, if it still runs then."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(["imatrix", *map(str, arguments)]) + "\n")
        child = int(self._process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):  # it was done before
                os.kill(child, signal.SIGKILL)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.safetensors"
    save_file({"ids": token_set().ids, "starts": token_set().starts}, path)
    return path


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    running = Runner()
    yield running
    running.close()


@pytest.fixture(scope="module")
def undisturbed(
    layers62: Path, tokens_file: Path, runner: Runner, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[bytes], float]:
    """What a run leaves that nobody disturbed, and its seconds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    assert runner(layers62, "-o", folder / "i.gguf", "--tokens", tokens_file) == 0
    assert left(folder) == NAMES
    return outputs(folder), time.monotonic() - began


@pytest.mark.parametrize("wanted", [2, pytest.param(KILLS, marks=pytest.mark.full)])
def test_kills_at_random_moments_end_in_the_same_bytes(
    layers62: Path,
    tokens_file: Path,
    undisturbed: tuple[list[bytes], float],
    runner: Runner,
    tmp_path: Path,
    wanted: int,
) -> None:
    expected, duration = undisturbed
    moments = random.Random(62)
    kills = resumable = number = 0
    while kills < wanted:
        out = tmp_path / str(number) / "i.gguf"
        out.parent.mkdir()
        command = (layers62, "-o", out, "--tokens", tokens_file)
        work = out.with_name("i.gguf.layers")
        # Chains of kills on one output, each of which takes off a part of what is left.
        while (code := runner(*command, kill_after=moments.uniform(0.2, duration))) == -signal.SIGKILL:
            kills += 1
            resumable += (work / "layer-0000.safetensors").exists()
            if out.exists() and not work.exists():
                break  # killed when everything was done
        else:
            assert code == 0
        assert outputs(out.parent) == expected
        assert left(out.parent) == NAMES
        number += 1
    assert resumable >= wanted // 2


def test_the_second_of_two_runs_at_once_is_refused(
    layers62: Path, tokens_file: Path, undisturbed: tuple[list[bytes], float], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "quantkit", "imatrix", layers62, "-o", tmp_path / "i.gguf", "--tokens"]
    command = [*map(str, command), str(tokens_file)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    (refused,) = [error for error, process in zip(said, both, strict=True) if process.returncode]
    assert "another run is writing this output" in refused
    assert len(refused.splitlines()) == 1
    assert left(tmp_path) == NAMES
    assert outputs(tmp_path) == undisturbed[0]

"""A compensated run that was killed at any moment ends in the bytes of an undisturbed one when it is repeated."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from compensated_runs import SIZE, contents, left, token_set
from harness import MakeCheckpoint
from killable import Runner
from safetensors.numpy import save_file

KILLS = 20
LAYERS = 8


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    running = Runner("quantkit.run.gguf.compensate", "quantkit.calibration.corpora.build")
    yield running
    running.close()


@pytest.fixture(scope="module")
def command(
    make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], tuple[str | Path, ...]]:
    """The command line that writes two types into a folder."""
    folder = tmp_path_factory.mktemp("killed")
    source = make_checkpoint(folder / "source", **SIZE | {"layers": LAYERS})
    tokens = folder / "t.safetensors"
    save_file({"ids": token_set().ids, "starts": token_set().starts}, tokens)
    return lambda out: ("gguf", "q4_0,mxfp4_moe", source, "-o", out, "--compensate", "--tokens", tokens)


def seconds(count: float) -> Callable[[], None]:
    return lambda: time.sleep(count)


@pytest.mark.parametrize("wanted", [2, pytest.param(KILLS, marks=pytest.mark.full)])
def test_kills_at_random_moments_end_in_the_same_bytes(
    runner: Runner, command: Callable[[Path], tuple[str | Path, ...]], tmp_path: Path, wanted: int
) -> None:
    whole = tmp_path / "whole"
    assert runner(*command(whole)) == 0  # kernels are compiled perhaps
    began = time.monotonic()
    assert runner(*command(whole), "--force") == 0
    duration = time.monotonic() - began
    expected = contents(whole)

    moments = random.Random(6)
    kills = resumable = number = 0
    while kills < wanted:
        out = tmp_path / str(number)
        # Chains of kills on one output, each of which takes off a part of what is left.
        while (code := runner(*command(out), wait=seconds(moments.uniform(0.1, duration)))) == -signal.SIGKILL:
            kills += 1
            resumable += bool(list(out.glob("*.layers/layer-0000.safetensors")))
            # What has its final name is whole.
            assert all(path.read_bytes() == expected[path.name] for path in out.glob("*.gguf"))
            if len(list(out.glob("*.gguf"))) == 2 and not list(out.glob("*.layers/run.json")):
                break  # killed when everything was done
        else:
            assert code == 0
            assert left(out) == sorted(expected)
        assert {name: (out / name).read_bytes() for name in expected} == expected
        number += 1
    assert resumable >= wanted // 2


def test_ctrl_c_is_exit_code_130(
    runner: Runner, command: Callable[[Path], tuple[str | Path, ...]], tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def second_layer() -> None:
        while not list(out.glob("*.layers/layer-0001.safetensors")):
            time.sleep(0.01)

    assert runner(*command(out), wait=second_layer, kill=signal.SIGINT) == 130
    assert [name.rpartition(".")[2] for name in left(out)] == ["partial", "layers", "partial"]
    assert runner(*command(out)) == 0
    assert {path.suffix for path in out.iterdir()} == {".gguf", ".json"}

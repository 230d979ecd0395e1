"""An INT4 run that was killed at any moment ends in the bytes of an undisturbed one when it is repeated."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import MakeCheckpoint
from int4_runs import SIZE, contents, left, token_set
from killable import Runner
from safetensors.numpy import save_file

KILLS = 5
COMMANDS = {
    "gptq": ("gptq", "--attention", "int4"),
    "awq": ("awq", "--then-gptq"),
    "rtn": ("rtn", "--format", "awq"),
}
LAYERS = {"gptq": 14, "awq": 6, "rtn": 62}


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    running = Runner(
        "quantkit.run.int4.quantize", "quantkit.run.int4.calibrated_pass", "quantkit.calibration.corpora.build"
    )
    yield running
    running.close()


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "t.safetensors"
    save_file({"ids": token_set().ids, "starts": token_set().starts}, path)
    return path


def seconds(count: float) -> Callable[[], None]:
    return lambda: time.sleep(count)


@pytest.mark.parametrize("method", COMMANDS)
def test_kills_at_random_moments_end_in_the_same_bytes(
    make_checkpoint: MakeCheckpoint, tokens_file: Path, runner: Runner, tmp_path: Path, method: str
) -> None:
    source = make_checkpoint(tmp_path / "source", **SIZE | {"layers": LAYERS[method]})
    name, *options = COMMANDS[method]
    text = () if method == "rtn" else ("--tokens", tokens_file)

    def command(out: Path) -> tuple[str | Path, ...]:
        return (name, source, "-o", out, "--group-size", "64", *text, *options)

    whole = tmp_path / "whole" / "M"
    whole.parent.mkdir()
    assert runner(*command(whole)) == 0  # kernels are compiled perhaps
    began = time.monotonic()
    assert runner(*command(whole), "--force") == 0
    duration = time.monotonic() - began
    expected = contents(whole)

    moments = random.Random(method)
    kills = resumable = number = 0
    while kills < KILLS:
        out = tmp_path / str(number) / "M"
        store = out.with_name("M.layers")
        out.parent.mkdir()
        # Chains of kills on one output, each of which takes off a part of what is left.
        while (code := runner(*command(out), wait=seconds(moments.uniform(0.1, duration)))) == -signal.SIGKILL:
            kills += 1
            resumable += (store / "layer-0000.safetensors").exists()
            # What has its final name is whole.
            assert not out.exists() or contents(out) == expected
            if out.exists() and not (store / "run.json").exists():
                break  # killed when everything was done
        else:
            assert code == 0
            assert left(out.parent) == ["M"]
        assert contents(out) == expected
        number += 1
    assert resumable >= KILLS // 2


def test_ctrl_c_is_exit_code_130(
    make_checkpoint: MakeCheckpoint, tokens_file: Path, runner: Runner, tmp_path: Path
) -> None:
    source = make_checkpoint(tmp_path / "source", **SIZE | {"layers": 24})
    out = tmp_path / "out" / "M"
    out.parent.mkdir()
    command = ("gptq", source, "-o", out, "--group-size", "64", "--tokens", tokens_file)

    def second_layer() -> None:
        while not (out.with_name("M.layers") / "layer-0001.safetensors").exists():
            time.sleep(0.01)

    assert runner(*command, wait=second_layer, kill=signal.SIGINT) == 130
    assert left(out.parent) == ["M.layers", "M.partial"]
    assert runner(*command) == 0
    assert left(out.parent) == ["M"]

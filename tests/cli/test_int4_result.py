"""`quantkit awq`, `gptq` and `rtn`: what they print, what they say of themselves, and runs that go on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Cli, CliResult, MakeCheckpoint
from refusals import left
from token_files import saved

DOCUMENTS, LENGTH = 8, 32
TOKENS = DOCUMENTS * LENGTH
# Of SMALL: two layers of four experts with three matrices of 256 x 256.
MATRIX = 256 * 256
WEIGHTS = 2 * 4 * 3 * MATRIX
METHODS = ("awq", "gptq", "rtn")
Run = Callable[..., CliResult]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "my-tokens.safetensors"
    return saved(path, np.random.default_rng(0).integers(0, 500, (DOCUMENTS, LENGTH)))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "quantized"


@pytest.fixture
def run(cli: Cli, small_checkpoint: Path, tokens: Path, out: Path) -> Run:
    def start(method: str, *options: object) -> CliResult:
        text = () if method == "rtn" else ("--tokens", tokens)
        return cli(method, small_checkpoint, "-o", out, *text, *options)

    return start


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --json


@pytest.mark.parametrize(
    ("method", "options", "group", "bits_per_weight"),
    [
        # A scale of 16 bits and a zero of 4 for 128 weights
        ("awq", (), 128, 4 + 20 / 128),
        # the same, and 32 bits per column of 256
        ("gptq", (), 128, 4 + 20 / 128 + 32 / 256),
        # a scale, and twice 64 bits per matrix
        ("rtn", (), 128, 4 + 16 / 128 + 128 / MATRIX),
        ("rtn", ("--bits", "8", "--group-size", "-1"), -1, 8 + 16 / 256 + 128 / MATRIX),
    ],
    ids=str,
)
def test_json(run: Run, out: Path, method: str, options: tuple[str, ...], group: int, bits_per_weight: float) -> None:
    result = run(method, *options, "--json")
    assert result.code == 0, result.err
    assert result.err == ""
    found = result.json()
    assert left(out) == [out.name]
    assert 0 < found.pop("seconds") < 200
    assert 10**8 < found.pop("peak_rss_bytes") < 10**10
    coverage, error, digest = (found.pop(key) for key in ("coverage", "relative_error", "tokens_sha256"))
    assert found.pop("bits_per_weight") == pytest.approx(bits_per_weight, abs=1e-4)
    rounded = method == "rtn"
    assert found == {
        "output": str(out),
        "report": str(out / "quantkit.json"),
        "method": method,
        "format": "compressed-tensors" if rounded else method,
        "bits": 8 if "8" in options else 4,
        "group_size": group,
        "weights": WEIGHTS,
        "output_bytes": (out / "model.safetensors").stat().st_size,
        "shards": 1,
        "tokens": 0 if rounded else TOKENS,
        "precision": None if rounded else "float32",
        "fallbacks": {},
        "excluded_tokens": [],
        "resumed_layers": 0,
    }
    if rounded:
        assert (coverage, error, digest) == (None, None, None)
        return
    ids = np.random.default_rng(0).integers(0, 500, TOKENS).astype("<i4")
    starts = (np.arange(DOCUMENTS + 1) * LENGTH).astype("<i8")
    assert digest == hashlib.sha256(ids.tobytes() + starts.tobytes()).hexdigest()
    assert 0 < error < 1, "better than plain rounding on what it looked at"
    assert (coverage["experts"], coverage["min_tokens_per_expert"]) == (8, 256)
    assert "layers" not in coverage


def test_report(run: Run, out: Path, small_checkpoint: Path) -> None:
    found = run("gptq", "--json", "--keep-layers", "1", "--min-tokens-per-expert", "100").json()
    report = json.loads((out / "quantkit.json").read_text())
    for key in ("format", "bits", "group_size", "tokens", "tokens_sha256", "precision", "fallbacks", "excluded_tokens"):
        assert report[key] == found[key]
    assert report["kept_layers"] == [1]
    assert report["coverage"]["min_tokens_per_expert"] == 100
    assert len(report["coverage"]["layers"]) == 2
    assert found["weights"] == WEIGHTS / 2
    assert str(small_checkpoint) not in json.dumps(report), "paths of this machine are nobody's business"


# Terminal


@pytest.mark.parametrize("method", METHODS)
def test_terminal(run: Run, out: Path, method: str) -> None:
    result = run(method)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    if method != "rtn":
        assert lines[0].startswith(f"{TOKENS} tokens, float32; tokens per expert: ")
        assert any(line.startswith("output error of the quantized matrices: 0.") for line in lines)
    assert f"{method}: {WEIGHTS:,} weights in 4 bits, groups of 128, " in lines[-3]
    assert "1 shard" in lines[-3]
    assert lines[-2:] == [str(out), str(out / "quantkit.json")]


def test_whole_rows_have_no_number(run: Run) -> None:
    assert "4 bits, whole rows, compressed-tensors" in run("rtn", "--group-size", "-1").out


@pytest.mark.parametrize("method", METHODS)
def test_tensor_parallelism_switches_the_group_size(run: Run, out: Path, method: str) -> None:
    """Four GPUs have 64 of 256 columns each."""
    result = run(method, "--tp", "4", "--json")
    assert result.code == 0, result.err
    assert result.json()["group_size"] == 64
    (line,) = result.error_lines
    assert line.startswith("group size 64: ")
    assert "--tp 4" in line
    assert str(64) in json.dumps(json.loads((out / "config.json").read_text())["quantization_config"])


@pytest.mark.parametrize("size", ["64", "32", "-1"])
def test_tensor_parallelism_with_a_group_size_that_fits(run: Run, size: str) -> None:
    result = run("rtn", "--tp", "4", "--group-size", size, "--json")
    assert result.error_lines == []
    assert result.json()["group_size"] == int(size)


def test_text_of_a_file(cli: Cli, tiny_m2: Path, out: Path, tmp_path: Path) -> None:
    """All layers but one are kept, which is quicker."""
    text = tmp_path / "text.txt"
    text.write_text("def f(x):\n    return x + 1\n" * 40)
    options = ("--calibration", text, "--samples", "4", "--sequence-length", "40", "--keep-layers", "1-3", "--json")
    found = cli("gptq", tiny_m2, "-o", out, *options).json()
    assert (found["tokens"], found["weights"]) == (160, 16 * 3 * MATRIX)
    report = json.loads((out / "quantkit.json").read_text())
    assert report["calibration"]["corpus"] == "text.txt"


# Outputs that exist, runs that go on


@pytest.mark.parametrize("method", METHODS)
def test_the_same_run_gives_the_same_bytes(run: Run, out: Path, method: str) -> None:
    assert run(method).code == 0
    first = contents(out)
    (out / "stale.txt").write_text("of an earlier version")
    assert run(method, "--force").code == 0
    assert contents(out) == first
    assert left(out) == [out.name]


def test_empty_folder_is_as_good_as_none(run: Run, out: Path) -> None:
    out.mkdir()
    assert run("rtn").code == 0
    assert (out / "config.json").is_file()


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_goes_on(run: Run, out: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    from quantkit.calibration.layer_store import LayerStore

    assert run(method).code == 0
    whole = contents(out)

    def interrupt(self: LayerStore, layer: int, *rest: Any) -> None:
        if layer == 1:
            raise KeyboardInterrupt
        save(self, layer, *rest)

    shutil.rmtree(out)
    with monkeypatch.context() as patch:
        save = LayerStore.save
        patch.setattr(LayerStore, "save", interrupt)
        stopped = run(method)
    assert stopped.code == 130
    (line,) = stopped.error_lines
    assert "repeat the same command" in line
    assert not out.exists()
    result = run(method)
    assert result.code == 0, result.err
    assert "resumed: 1 layers were on disk" in result.out.splitlines()
    assert contents(out) == whole
    assert left(out) == [out.name]


def test_an_interrupted_run_with_other_arguments(run: Run, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("quantkit.run.int4.quantize.publish_folder", interrupt)
        assert run("rtn").code == 130
    before = left(out)
    for options in (("--group-size", "64"), ("--format", "gptq"), ("--keep-layers", "0"), ("--bits", "8")):
        result = run("rtn", *options)
        assert result.code == 2, options
        (line,) = result.error_lines
        assert "--force" in line
        assert left(out) == before
    assert run("rtn", "--bits", "8", "--force").code == 0
    assert left(out) == [out.name]
    assert json.loads((out / "quantkit.json").read_text())["bits"] == 8


# Odd models and texts


@pytest.mark.parametrize("size", [{"experts": 1, "used": 1}, {"experts": 40, "used": 1}, {"layers": 1}], ids=str)
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_models_of_odd_sizes(
    cli: Cli, make_checkpoint: MakeCheckpoint, out: Path, tmp_path: Path, size: dict[str, int], method: str
) -> None:
    """With 40 experts and the same token again and again, 39 see nothing of their own."""
    source = make_checkpoint(tmp_path / "odd", **{"layers": 1, "experts": 2} | size)
    path = saved(tmp_path / "t", np.zeros((1, 2000)))
    result = cli(method, source, "-o", out, "--tokens", path, "--min-tokens-per-expert", "0", "--json")
    assert result.code == 0, result.err
    found = result.json()
    if "experts" in size and size["experts"] == 40:
        assert found["coverage"]["experts_without_tokens"] == 39
        assert found["fallbacks"]["experts_without_tokens"] == 39


@pytest.mark.parametrize("method", METHODS)
def test_help(cli: Cli, method: str) -> None:
    result = cli(method, "--help")
    assert result.code == 0
    for option in ("--bits", "--group-size", "--format", "--attention", "--keep-layers", "--tp", "--memory", "--json"):
        assert option in result.out
    assert ("--calibration" in result.out) == (method != "rtn")
    assert "--desc-act" not in result.out

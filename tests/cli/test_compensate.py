"""`quantkit gguf --compensate` and `quantkit gguf` with several types when all is well: what they print and write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from harness import Cli, CliResult
from refusals import left
from token_files import saved

from quantkit.run.sizes import resident


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "my-tokens.safetensors"
    return saved(path, np.random.default_rng(0).integers(0, 500, (4, 32)))


@pytest.fixture
def compensate(cli: Cli, tiny_checkpoint: Path, tokens: Path, out: Path) -> Callable[..., CliResult]:
    """`quantkit gguf TYPES --compensate` on the tiny checkpoint, without a minimum per expert."""

    def run(types: str, *options: object, out: Path = out) -> CliResult:
        floor = ("--min-tokens-per-expert", 32)
        result = cli("gguf", types, tiny_checkpoint, "-o", out, "--compensate", "--tokens", tokens, *floor, *options)
        assert result.code == 0, result.err
        return result

    return run


def test_terminal_text(compensate: Callable[..., CliResult], out: Path) -> None:
    result = compensate("q4_k_m", "--tensor-type", "attn_k=iq3_s")
    assert result.err == ""
    lines = result.out.splitlines()
    assert lines[0].startswith("128 tokens, float32; tokens per expert: ")
    assert "Q4_K_M: 7 tensors compensated; 2 without: token_embd.weight, blk.0.attn_k.weight" in lines
    (error,) = (line for line in lines if "output error" in line)
    assert error.startswith("Q4_K_M: output error 0.")
    assert " x that of the search with importance, 0." in error
    assert error.endswith(" x without")
    assert lines[-2:] == [str(out), str(out.with_name("model.quantkit.json"))]
    assert left(out) == ["model.gguf", "model.quantkit.json"]


def test_json(compensate: Callable[..., CliResult], out: Path) -> None:
    result = compensate("q4_k_m", "--json")
    assert result.err == ""
    found = result.json()
    assert found["outputs"] == [str(out)]
    assert found["mix"] == "Q4_K_M"
    assert found["output_bytes"] == out.stat().st_size
    assert found["imatrix"] is None
    about = found["compensation"]
    report = json.loads(out.with_name("model.quantkit.json").read_text())
    for key in ("led_by", "compensated_tensors", "tensors_without", "error_to_importance", "tokens", "precision"):
        assert about[key] == report[key]
    assert about["report"] == str(out.with_name("model.quantkit.json"))
    assert about["resumed_layers"] == 0
    assert about["excluded_tokens"] == []
    assert "layers" not in about["coverage"]
    assert "items" not in found  # layers are what such a run goes on with


def test_several_types_into_a_folder(compensate: Callable[..., CliResult], tmp_path: Path) -> None:
    """The folder is made, the files are named after the source."""
    folder = tmp_path / "new"
    files = compensate("q4_k_m,Q2_K", "--json", out=folder).json()["files"]
    assert [file["mix"] for file in files] == ["Q4_K_M", "Q2_K"]
    assert [file["compensation"]["led_by"] for file in files] == ["Q4_K_M"] * 2
    names = ["checkpoint-Q4_K_M.gguf", "checkpoint-Q2_K.gguf"]
    assert [file["outputs"] for file in files] == [[str(folder / name)] for name in names]
    assert {path.name for path in folder.iterdir() if path.suffix == ".gguf"} == set(names)


def test_several_types_on_a_terminal(compensate: Callable[..., CliResult], out: Path) -> None:
    lines = compensate("q4_k_m,q2_k").out.splitlines()
    assert [line for line in lines if line.startswith(str(out.parent))] == [
        str(out.with_name(f"model-{mix}.{kind}")) for mix in ("Q4_K_M", "Q2_K") for kind in ("gguf", "quantkit.json")
    ]
    assert sum("tokens per expert" in line for line in lines) == 1


def test_resumed(compensate: Callable[..., CliResult], kill_after: Callable[[int], None], out: Path, cli: Cli,
    tiny_checkpoint: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Whoever interrupts a run repeats the command."""
    kill_after(12)
    result = cli("gguf", "q4_0", tiny_checkpoint, "-o", out, "--compensate", "--tokens", tokens,
                 "--min-tokens-per-expert", 32)  # fmt: skip
    assert result.code == 130
    (line,) = result.error_lines
    assert "repeat the same command" in line
    assert left(out) == ["model.gguf.layers", "model.gguf.partial"]
    monkeypatch.undo()


def test_corpus_by_name(cli: Cli, tiny_m2: Path, out: Path) -> None:
    result = cli("gguf", "q8_0", tiny_m2, "-o", out, "--compensate", "--calibration", "smoke", "--samples", 1)
    assert result.code == 0, result.err
    keys = gguf.GGUFReader(out).fields
    assert json.loads(keys["quantkit.calibration"].contents())["corpus"] == "smoke"


def test_plain_types_together(cli: Cli, tiny_checkpoint: Path, out: Path) -> None:
    result = cli("gguf", "q8_0,q4_0", tiny_checkpoint, "-o", out, "--json")
    assert [file["mix"] for file in result.json()["files"]] == ["Q8_0", "Q4_0"]
    assert left(out) == ["model-Q4_0.gguf", "model-Q8_0.gguf"]
    text = cli("gguf", "q8_0,q4_0", tiny_checkpoint, "-o", out, "--force").out.splitlines()
    assert next(line for line in text if line.startswith("Q")).startswith("Q8_0: ")
    assert text[-1] == str(out.with_name("model-Q4_0.gguf"))


def test_limits_do_not_change_the_bytes(compensate: Callable[..., CliResult], out: Path) -> None:
    """One worker of two or more."""
    compensate("q4_0")
    first = out.read_bytes()
    for option in (("--memory", resident() + 500_000_000), ("--threads", 1)):
        compensate("q4_0", "--force", *option)
        assert out.read_bytes() == first

"""`quantkit imatrix` with every bad input: exit code 2, one line, nothing written and nothing replaced."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import Cli, Damage
from refusals import left, refusal
from token_files import saved


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "my-tokens.safetensors"
    return saved(path, np.random.default_rng(0).integers(0, 500, (2, 16)))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "i.gguf"


@pytest.fixture
def refused(cli: Cli, tiny_m2: Path, out: Path) -> Callable[..., str]:
    """The one line of a refused command, which leaves nothing behind."""

    def check(*naming: object, options: tuple[object, ...], source: Path = tiny_m2, out: Path = out) -> str:
        before = left(out) if out.parent.is_dir() else []
        line = refusal(cli("imatrix", source, "-o", out, *options))
        for word in naming:
            assert str(word) in line
        assert (left(out) if out.parent.is_dir() else []) == before
        return line

    return check


def test_no_output(cli: Cli, tiny_m2: Path, out: Path) -> None:
    assert "-o imatrix.gguf" in refusal(cli("imatrix", tiny_m2))
    assert left(out) == []


def test_source_that_is_no_checkpoint(refused: Callable[..., str], tokens: Path, tmp_path: Path, out: Path) -> None:
    for source in (tmp_path / "absent", tmp_path, tokens):
        refused(source, options=("--tokens", tokens), source=source)


def test_existing_output(refused: Callable[..., str], tokens: Path, out: Path) -> None:
    out.write_text("precious")
    assert "--force" in refused(out, "exists", options=("--tokens", tokens))
    assert out.read_text() == "precious"


@pytest.mark.parametrize("name", ["i.coverage.json", "i.coverage.png"])
def test_existing_report(refused: Callable[..., str], tokens: Path, out: Path, name: str) -> None:
    """Perhaps that of another file whose name differs in the suffix only."""
    out.with_name(name).write_text("precious")
    assert "--force" in refused(name, "exists", options=("--tokens", tokens))
    assert out.with_name(name).read_text() == "precious"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "a shard"])
def test_output_that_belongs_to_the_source(
    refused: Callable[..., str], damaged: Damage, tokens: Path, name: str
) -> None:
    path = min(damaged.folder.glob("*.safetensors")) if name == "a shard" else damaged.folder / name
    before = path.read_bytes()
    refused(path, "source", options=("--tokens", tokens, "--force"), source=damaged.folder, out=path)
    assert path.read_bytes() == before


def test_output_that_is_the_tokens(
    refused: Callable[..., str], small_checkpoint: Path, tokens: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    path = Path(shutil.copyfile(tokens, tmp_path / "in" / "t.safetensors"))
    refused(path, options=("--tokens", path, "--force"), source=small_checkpoint, out=path)
    assert path.read_bytes() == tokens.read_bytes()


@pytest.mark.parametrize("name", ["absent/i.gguf", "", "x" * 300, "x" * 240 + ".gguf"], ids=len)
def test_outputs_that_cannot_be(refused: Callable[..., str], tokens: Path, out: Path, name: str) -> None:
    """The longest name that is written is the coverage report's with .partial behind it."""
    refused(options=("--tokens", tokens), out=out.parent / name)


@pytest.mark.parametrize("name", ["i.gguf", "i.gguf.partial", "i.coverage.json", "i.coverage.png"])
def test_a_folder_in_the_place_of_an_output(refused: Callable[..., str], tokens: Path, out: Path, name: str) -> None:
    out.with_name(name).mkdir()
    refused(name, options=("--tokens", tokens, "--force"))


def test_a_file_in_the_place_of_the_work_folder(refused: Callable[..., str], tokens: Path, out: Path) -> None:
    out.with_name("i.gguf.layers").write_text("precious")
    refused("i.gguf.layers", options=("--tokens", tokens, "--force"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write and read everything")
def test_folder_that_is_not_writable(refused: Callable[..., str], tokens: Path, out: Path) -> None:
    out.parent.chmod(0o500)
    refused(out.parent, "not writable", options=("--tokens", tokens))
    out.parent.chmod(0o700)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--device", "gpu"), ["--device", "gpu", "cpu or cuda"]),
        (("--precision", "float16"), ["--precision", "float16", "choose auto, float32, bfloat16"]),
        (("--memory", "much"), ["--memory", "much"]),
        (("--memory", "100M"), ["--memory", "MB"]),
        (("--memory", "1"), ["--memory", "MB"]),
        (("--min-tokens-per-expert", "-1"), ["--min-tokens-per-expert"]),
        (("--min-tokens-per-expert", "4294967296"), ["--min-tokens-per-expert"]),
        (("--min-tokens-per-expert", "many"), ["--min-tokens-per-expert"]),
        (("--calibration", "smoke"), ["--calibration", "--tokens"]),
        (("--samples", "3"), ["--samples", "--tokens"]),
        (("--sequence-length", "8"), ["--sequence-length", "--tokens"]),
    ],
    ids=str,
)
def test_options(refused: Callable[..., str], tokens: Path, options: tuple[str, ...], words: list[str]) -> None:
    refused(*words, options=("--tokens", tokens, *options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_a_device(refused: Callable[..., str], tokens: Path) -> None:
    refused("--device cuda", "no CUDA device", options=("--tokens", tokens, "--device", "cuda"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sequence-length", "5000"), ["5000", "4096"]),
        (("--sequence-length", "1"), ["--sequence-length"]),
        (("--sequence-length", "x"), ["--sequence-length"]),
        (("--samples", "0"), ["--samples"]),
    ],
    ids=str,
)
def test_sizes_of_the_text(
    refused: Callable[..., str], tmp_path: Path, options: tuple[str, ...], words: list[str]
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one two three")
    refused(*words, options=("--calibration", path, *options))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"])
def test_text_without_text(refused: Callable[..., str], tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    refused("text.txt", options=("--calibration", path))


def test_absent_inputs(refused: Callable[..., str], tmp_path: Path) -> None:
    refused("absent.txt", options=("--calibration", tmp_path / "absent.txt"))
    refused("absent.bin", options=("--tokens", tmp_path / "absent.bin"))
    refused("nonsense", options=("--calibration", "nonsense"))


def test_tokens_of_another_vocabulary(refused: Callable[..., str], tmp_path: Path) -> None:
    path = saved(tmp_path / "t", np.array([[1, 2, 4096]]))
    refused(path, "4096", "another model", options=("--tokens", path))


def test_document_longer_than_the_context(refused: Callable[..., str], tmp_path: Path) -> None:
    path = saved(tmp_path / "t", np.ones((1, 4097)))
    refused(path, "4097", "4096", options=("--tokens", path))


@pytest.mark.parametrize("size", [0, 8, 100, -4])
def test_truncated_tokens(refused: Callable[..., str], tokens: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "t"
    path.write_bytes(tokens.read_bytes()[:size])
    refused(path, options=("--tokens", path))


def test_too_little_memory_says_how_much(refused: Callable[..., str], tokens: Path) -> None:
    line = refused(options=("--tokens", tokens, "--memory", "300M"))
    assert "needs" in line
    assert line.count("MB") >= 1


def test_weights_that_are_not_finite(cli: Cli, damaged: Damage, tokens: Path, out: Path) -> None:
    name = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    damaged.poke(name, b"\x7f")
    result = cli("imatrix", damaged.folder, "-o", out, "--tokens", tokens)
    assert result.code in (1, 2)
    assert len(result.error_lines) == 1
    assert name in result.err
    assert not out.exists()

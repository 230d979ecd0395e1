"""Token files of another tokenizer are refused wherever --tokens is taken; those that do not say are only checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from harness import Cli
from refusals import refusal
from token_files import saved

COMMANDS = ("imatrix", "awq", "gptq")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the expert of a layer is the unit of work, and a shard holds the experts of some layers\n" * 20)
    return path


@pytest.fixture
def built(cli: Cli, tiny_checkpoint: Path, text: Path, tmp_path: Path) -> Path:
    """The text's ids for the synthetic checkpoints."""
    path = tmp_path / "tokens.safetensors"
    assert cli("calibration", "build", text, "--tokenizer", tiny_checkpoint, "-o", path).code == 0
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_tokens_of_another_tokenizer(cli: Cli, tiny_m2: Path, built: Path, tmp_path: Path, command: str) -> None:
    """All ids are within the vocabulary: it is the file's own word that tells."""
    line = refusal(cli(command, tiny_m2, "-o", tmp_path / "x", "--tokens", built))
    assert f"{built}: made with another tokenizer than the checkpoint's" in line
    assert "quantkit calibration build" in line
    assert [path.name for path in tmp_path.iterdir()] == [built.name]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_changed_tokenizer_is_another(
    cli: Cli, tiny_checkpoint: Path, built: Path, tmp_path: Path, command: str, name: str
) -> None:
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    path = source / name
    path.write_text(path.read_text() + "\n")
    assert "another tokenizer" in refusal(cli(command, source, "-o", tmp_path / "x", "--tokens", built))


@pytest.mark.parametrize("command", COMMANDS)
def test_tokens_of_the_same_tokenizer(
    cli: Cli, tiny_checkpoint: Path, built: Path, tmp_path: Path, command: str
) -> None:
    """Also in another folder, with a template of its own, and where there is no tokenizer to compare with."""
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    (source / "chat_template.jinja").write_text("{{ messages }}")
    result = cli(command, source, "-o", tmp_path / "x", "--tokens", built)
    assert result.code == 0, result.err
    (source / "tokenizer.json").unlink()
    result = cli(command, source, "-o", tmp_path / "y", "--tokens", built)
    assert result.code == 0, result.err


@pytest.mark.parametrize("command", COMMANDS)
def test_tokens_that_do_not_say(cli: Cli, tiny_checkpoint: Path, tmp_path: Path, command: str) -> None:
    path = saved(tmp_path / "t", np.random.default_rng(0).integers(0, 512, (4, 32)))
    result = cli(command, tiny_checkpoint, "-o", tmp_path / "x", "--tokens", path)
    assert result.code == 0, result.err

"""`quantkit verify` refuses what cannot be compared: one line, exit code 2, no report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Cli, CliResult, MakeCheckpoint

from quantkit.files import partial_path
from quantkit.verify.capture_file import open_capture


@pytest.fixture(scope="module")
def text(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "code.txt"
    path.write_text((tiny_m2 / "heldout" / "text_code.txt").read_text()[:2500])
    return path


@pytest.fixture
def capture(cli: Cli, tiny_m2: Path, text: Path, tmp_path: Path) -> Path:
    """The fixture as a reference, from the streamed pass."""
    out = tmp_path / "reference.capture"
    done = cli("verify", "capture", tiny_m2, "-o", out, "--engine", "streamed", "--text", text)
    assert done.code == 0, done.err
    return out


@pytest.fixture
def refused(cli: Cli, tmp_path: Path) -> Callable[..., str]:
    """Run `quantkit verify` with arguments that it must refuse; returns the line it says."""

    def run(*arguments: object) -> str:
        out = tmp_path / "report"
        done: CliResult = cli("verify", *arguments, "-o", out)
        assert done.code == 2, (done.code, done.out, done.err)
        (line,) = done.error_lines
        assert not list(out.glob("report.*"))
        return line

    return run


@pytest.fixture
def other_tokenizer(tiny_m2: Path, tmp_path: Path) -> Path:
    """The fixture with two tokens of its vocabulary exchanged."""
    folder = Path(shutil.copytree(tiny_m2, tmp_path / "other"))
    data = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


def test_reference_of_another_model(
    refused: Callable[..., str], capture: Path, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    another = make_checkpoint(tmp_path / "another")
    line = refused(another, "--reference", capture)
    assert "another model" in line
    assert str(capture) in line


def test_another_tokenizer_in_a_folder(refused: Callable[..., str], capture: Path, other_tokenizer: Path) -> None:
    line = refused(other_tokenizer, "--reference", capture, "--engine", "streamed")
    assert "its vocabulary is not the reference's" in line
    assert str(other_tokenizer) in line


def test_another_vocabulary_in_a_gguf(
    refused: Callable[..., str], cli: Cli, capture: Path, other_tokenizer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "other.gguf"
    assert cli("gguf", "q8_0", other_tokenizer, "-o", out).code == 0
    line = refused(out, "--reference", capture, "--engine", "streamed")
    assert "vocabulary is not the reference's" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--engine", "vllm"], "a GGUF; vllm does not load it"),
        (["--engine", "sglang"], "does not load it"),
        (["--engine", "onnx"], "--engine onnx: unknown"),
        (["--engine", "vllm", "--server", "http://127.0.0.1:1"], "exclude each other"),
        (["--gate", "lenient"], "no such gate; shipped: default, strict"),
        (["--server", "http://127.0.0.1:1"], "127.0.0.1:1"),
        (["--memory", "much"], "--memory"),
    ],
)
def test_arguments_that_do_not_fit(
    arguments: list[str], says: str, refused: Callable[..., str], cli: Cli, tiny_m2: Path, capture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "q8_0.gguf"
    assert cli("gguf", "q8_0", tiny_m2, "-o", out).code == 0
    assert says in refused(out, "--reference", capture, *arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--text", "missing.txt"], "--text missing.txt: no such file"),
        (["--text", "none", "--requests", "none"], "nothing is left to ask"),
        (["--requests", "missing.jsonl"], "missing.jsonl"),
        (["--requests", "bfcl:no_such_category"], "bfcl"),
        (["--engine", "llama.cpp"], "llama.cpp loads GGUFs only"),
    ],
)
def test_questions_that_cannot_be_asked(
    arguments: list[str], says: str, refused: Callable[..., str], tiny_m2: Path
) -> None:
    engine = [] if "--engine" in arguments else ["--engine", "vllm"]
    assert says in refused(tiny_m2, "--reference", tiny_m2, *engine, *arguments)


def test_missing_arguments(cli: Cli, tiny_m2: Path, tmp_path: Path) -> None:
    for arguments, says in (
        (["verify", tiny_m2, "-o", tmp_path / "r"], "no reference given"),
        (["verify", tiny_m2, "--reference", tiny_m2], "no output given"),
        (["verify", "capture", "-o", tmp_path / "c"], "no model given"),
        (["verify", "compare"], "no model given"),
        (["verify", tmp_path / "nothing", "--reference", tiny_m2, "-o", tmp_path / "r"], "no such file or folder"),
    ):
        done = cli(*arguments)
        assert done.code == 2
        assert says in done.err
        assert len(done.error_lines) == 1


def test_what_is_no_capture(
    refused: Callable[..., str], cli: Cli, tiny_m2: Path, capture: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.capture"
    damaged.write_bytes(capture.read_bytes()[:2000])
    assert "not a capture" in refused(tiny_m2, "--reference", damaged, "--engine", "streamed")
    assert "not a capture" in refused(capture, "--reference", tiny_m2)


def test_captures_of_other_questions(
    refused: Callable[..., str], cli: Cli, tiny_m2: Path, text: Path, capture: Path, tmp_path: Path
) -> None:
    longer, out = tmp_path / "longer.txt", tmp_path / "longer.capture"
    longer.write_text(text.read_text() * 2)
    assert cli("verify", "capture", tiny_m2, "-o", out, "--engine", "streamed", "--text", longer).code == 0
    assert "other questions" in refused(out, "--reference", capture)


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ("name: x\nchecks: []", "checks"),
        ("name: x\nchecks: [{metric: kld.mode, at_most: 1}]", "unknown metric 'kld.mode'"),
        ("name: x\nchecks: [{metric: kld.mean}]", "give at_most, at_least or worse_by"),
        ("name: x\nchecks: [{metric: kld.mean, worse_by: 0.1}]", "compares with the reference already"),
        ("name: x\nchecks: [{metric: kld.mean, at_most: low}]", "at_most"),
        ("name: x\nchecks: [{metric: kld.mean, at_most: 1}, {metric: kld.mean, at_most: 2}]", "two checks"),
    ],
)
def test_gates_with_mistakes(
    gate: str, says: str, refused: Callable[..., str], tiny_m2: Path, capture: Path, tmp_path: Path
) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(gate)
    line = refused(tiny_m2, "--reference", capture, "--engine", "streamed", "--gate", path)
    assert says in line
    assert str(path) in line


def test_capture_goes_on_only_with_the_same_arguments(
    cli: Cli, tiny_m2: Path, text: Path, capture: Path, tmp_path: Path
) -> None:
    """An unfinished capture of other questions is not mixed with new ones; the same command again is done at once."""
    again = cli("verify", "capture", tiny_m2, "-o", capture, "--engine", "streamed", "--text", text)
    assert again.code == 0
    capture.rename(partial_path(capture))
    other = tmp_path / "other.txt"
    other.write_text("something else entirely")
    command = ("verify", "capture", tiny_m2, "-o", capture, "--engine", "streamed", "--text")
    refused = cli(*command, other)
    assert refused.code == 2
    assert "was begun with another model or other arguments" in refused.err
    assert cli(*command, text).code == 0
    assert cli(*command, other, "--force").code == 0
    with open_capture(capture) as found:
        assert found.about("questions")["passages"][0]["domain"] == "other"


def test_several_captures_are_held_against_the_first(cli: Cli, tiny_m2: Path, capture: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.capture"
    command = ("verify", "capture", tiny_m2, "-o", theirs, "--reference", capture, "--engine", "streamed")
    assert cli(*command).code == 0
    done = cli("verify", theirs, capture, "--reference", capture, "-o", tmp_path / "report", "--json")
    assert done.code == 0, done.err
    report = done.json()
    assert report["verdict"] == "PASS"
    assert [pair["kld_mean"] for pair in report["engines"]] == [0]
    assert report["engines"][0]["left"] == "tiny-m2 on streamed"

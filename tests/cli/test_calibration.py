"""`quantkit calibration`: its answers, and every bad corpus: exit code 2, one line, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Cli, CliResult
from refusals import refusal

from quantkit.calibration.tokens import load_tokens

Build = Callable[..., CliResult]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
USER = {"role": "user", "content": "Hi"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "tokens.safetensors"


@pytest.fixture
def build(cli: Cli, tiny_m2: Path, out: Path) -> Build:
    """`quantkit calibration build CORPUS` for the fixture."""
    out.parent.mkdir()
    return lambda corpus, *options: cli("calibration", "build", corpus, "--tokenizer", tiny_m2, "-o", out, *options)


@pytest.fixture
def refused(build: Build, out: Path) -> Callable[..., str]:
    """The one line of a refused build that leaves nothing behind."""

    def run(corpus: object, *naming: object, options: tuple[object, ...] = ()) -> str:
        line = refusal(build(corpus, *options))
        for word in naming:
            assert str(word) in line
        assert list(out.parent.iterdir()) == []
        return line

    return run


def test_list(cli: Cli) -> None:
    result = cli("calibration", "list")
    assert result.code == 0
    header, *rows = result.out.splitlines()
    assert header.split() == ["name", "rows", "size", "domains", "licences"]
    assert [row.split()[0] for row in rows] == ["agentic", "code", "smoke"]
    corpora = cli("calibration", "list", "--json").json()["corpora"]
    assert corpora[0]["domains"] == {"code": 50, "tools": 25, "reasoning": 10, "multilingual": 10, "chat": 5}
    assert f"{corpora[0]['bytes']:,}" in rows[0]


@pytest.mark.parametrize("name", ["agentic", "code", "smoke"])
def test_show(cli: Cli, name: str) -> None:
    result = cli("calibration", "show", name)
    facts = cli("calibration", "show", name, "--json").json()
    assert result.code == 0
    for source in facts["sources"]:
        for key in ("name", "licence", "origin", "sha256"):
            assert source[key] in result.out
    assert sum(source["share"] for source in facts["sources"]) == pytest.approx(100)


def test_show_a_file(cli: Cli, tiny_m2: Path) -> None:
    path = tiny_m2 / "heldout" / "text_docs.txt"
    result = cli("calibration", "show", path)
    assert result.code == 0
    assert "licence unknown" in result.out
    assert "file order" in result.out


def test_build(build: Build, out: Path) -> None:
    result = build("smoke", "--samples", 4, "--sequence-length", 128)
    assert (result.code, result.err) == (0, "")
    tokens = load_tokens(out, vocab=4096, context=128)
    assert len(tokens.ids) == 512
    assert tokens.sha256() in result.out
    assert "512 tokens" in result.out
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_build_as_json(build: Build, out: Path) -> None:
    facts = build("smoke", "--json").json()
    tokens = load_tokens(out, vocab=4096, context=4096)
    assert facts == {"output": str(out), "tokens_sha256": tokens.sha256(), "provenance": tokens.provenance}


def test_rejected_rows_are_shown(build: Build, tmp_path: Path) -> None:
    path = rows(tmp_path, {"text": "good"}, {"messages": [USER, CALL]})
    result = build(path)
    assert result.code == 0
    (line,) = result.error_lines
    assert line == (
        "quantkit: note: 1 row rejected: arguments of a tool call is a JSON string; parse it into an object "
        f"(first: {path}:2)"
    )


def test_too_little_is_shown(build: Build, tmp_path: Path) -> None:
    (line,) = build(rows(tmp_path, {"text": "good"}), "--samples", 9).error_lines
    assert "of 4,608 tokens asked for" in line


def test_an_existing_output_stays(cli: Cli, build: Build, out: Path) -> None:
    out.write_text("mine")
    assert "exists" in refusal(build("smoke"))
    assert out.read_text() == "mine"


def test_missing_folder_of_the_output(cli: Cli, tiny_m2: Path, tmp_path: Path) -> None:
    out = tmp_path / "no" / "tokens"
    line = refusal(cli("calibration", "build", "smoke", "--tokenizer", tiny_m2, "-o", out))
    assert str(out.parent) in line
    assert not out.parent.exists()


# Bad corpora


def rows(tmp_path: Path, *values: Any) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(value if isinstance(value, str) else json.dumps(value) + "\n" for value in values))
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize("text", ["", "\n\n  \n"])
def test_empty_corpus(refused: Callable[..., str], tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"empty{suffix}"
    path.write_text(text)
    refused(path, path, "holds no text")


@pytest.mark.parametrize("name", ["none.txt", "none.jsonl", "none.yaml", "none.parquet"])
def test_missing_file(refused: Callable[..., str], tmp_path: Path, name: str) -> None:
    refused(tmp_path / name, tmp_path / name, "No such file")


def test_unknown_corpus(refused: Callable[..., str]) -> None:
    refused("smoky", "smoke")


def test_broken_line(refused: Callable[..., str], tmp_path: Path) -> None:
    path = rows(tmp_path, {"text": "good"}, "\n", '{"text": "bro\n', {"text": "good"})
    refused(path, f"{path}:3", "not JSON")


def test_line_that_is_not_utf8(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "\xff"}\n')
    refused(path, f"{path}:1", "not JSON")


def test_text_that_is_not_utf8(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"abc \xff def")
    refused(path, path, "not UTF-8")


NOTHING_USABLE = {
    "tool message without a tool call": {"messages": [USER, {"role": "tool", "content": "42"}]},
    "parse it into an object": {"messages": [USER, CALL]},
    "messages is empty": {"messages": []},
    "unknown role": {"messages": [{"role": "robot", "content": "Hi"}]},
    "would skip it": {"messages": [USER, {"role": "system", "content": "Hi"}]},
    "is not a string": {"messages": [{"role": "user", "content": {"a": 1}}]},
    "tool that is not": {"messages": [USER], "tools": [{"name": "f"}]},
    "neither a string": {"body": "Hi"},
    "neither a": "[1, 2]\n",
}


@pytest.mark.parametrize("reason", NOTHING_USABLE)
def test_no_row_can_be_used(refused: Callable[..., str], tmp_path: Path, reason: str) -> None:
    path = rows(tmp_path, "\n", NOTHING_USABLE[reason], NOTHING_USABLE[reason])
    refused(path, f"{path}:2", reason, "none of 2 rows")


@pytest.mark.parametrize(("length", "word"), [(4097, "context of 4096"), (1, "at least 2"), (0, "at least 2")])
def test_sequence_length(refused: Callable[..., str], length: int, word: str) -> None:
    refused("smoke", word, options=("--sequence-length", length))


@pytest.mark.parametrize("samples", [0, -3])
def test_samples(refused: Callable[..., str], samples: int) -> None:
    refused("smoke", "samples", options=("--samples", samples))


def test_changed_data(refused: Callable[..., str], tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "calibration"
    for name in ("smoke.yaml", "smoke.jsonl"):
        shutil.copy(folder / name, tmp_path)
    path = tmp_path / "smoke.jsonl"
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    refused(tmp_path / "smoke.yaml", path, "sha256")


# Bad checkpoints


@pytest.fixture
def checkpoint(tiny_m2: Path, tmp_path: Path) -> Path:
    """Tokenizer and configuration of the fixture, to spoil."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"):
        shutil.copy(tiny_m2 / name, folder)
    return folder


def spoilt(cli: Cli, checkpoint: Path, out: Path) -> str:
    out.parent.mkdir(exist_ok=True)
    line = refusal(cli("calibration", "build", "smoke", "--tokenizer", checkpoint, "-o", out))
    assert list(out.parent.iterdir()) == []
    return line


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
@pytest.mark.parametrize("text", [None, "", "{", "[]"])
def test_spoilt_checkpoint(cli: Cli, checkpoint: Path, out: Path, name: str, text: str | None) -> None:
    path = checkpoint / name
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert str(checkpoint) in spoilt(cli, checkpoint, out)


def test_checkpoint_without_template(cli: Cli, checkpoint: Path, out: Path) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    assert "has no chat template" in spoilt(cli, checkpoint, out)


def test_template_that_raises(cli: Cli, checkpoint: Path, out: Path, tmp_path: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ raise_exception('only on\nSundays') }}")
    out.parent.mkdir()
    path = rows(tmp_path, {"messages": [USER]})
    line = refusal(cli("calibration", "build", path, "--tokenizer", checkpoint, "-o", out))
    assert f"{path}:1: chat template: only on Sundays" in line


def test_no_such_checkpoint(cli: Cli, out: Path, tmp_path: Path) -> None:
    assert str(tmp_path / "nothing") in spoilt(cli, tmp_path / "nothing", out)

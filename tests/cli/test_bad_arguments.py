"""Types, rules, recipes and options that cannot hold, and how errors are shown: exit code 2 and one line."""

from pathlib import Path

import pytest
import torch
from harness import Cli, Damage, MakeCheckpoint
from refusals import NORM, Refused, refusal


@pytest.mark.parametrize("name", ["q9_9", "", "Q4", "q4_k_m ", "--", "f64"])
def test_unknown_type(refused: Refused, name: str) -> None:
    line = refusal(refused.cli("gguf", "-o", refused.out, "--", name, refused.source))
    assert f"unknown type {name!r}; " in line
    assert "hoose one of f32, " in line


@pytest.mark.parametrize("name", ["iq2_xxs", "IQ1_S", "q2_k_s", "iq3_xxs"])
def test_type_that_needs_an_imatrix(refused: Refused, name: str) -> None:
    refused(name.lower(), "importance matrix", mix=name)


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ("attn_(=q8_0", "not a regular expression"),
        ("[[a]ttn=q8_0", "not a regular expression"),  # Python only warns of it
        ("attn", "REGEX=TYPE"),
        ("=q8_0", "empty"),
        ("attn=", "unknown tensor type"),
        ("attn=q4_k_m", "unknown tensor type"),
        ("attn=iq1_s", "importance matrix"),
        ("nothing=q8_0", "no tensor of this model matches"),
        ("_norm=q8_0", "always stay F32"),
        ("ffn_gate_inp=q8_0", "always stay F32"),
        ("exp_probs_b=f16", "always stay F32"),
        ("a{99999999999999999999}=q8_0", "regular expression"),
    ],
)
def test_tensor_rule_that_cannot_hold(refused: Refused, rule: str, word: str) -> None:
    refused(rule.partition("=")[0], word, options=("--tensor-type", rule))


@pytest.mark.parametrize("name", ["fast", "", "OWN"])
def test_unknown_search(refused: Refused, name: str) -> None:
    refused("--kquants", repr(name), "own or ggml", options=("--kquants", name))


def test_unknown_device(refused: Refused) -> None:
    refused("--device 'gpu'", "cpu or cuda", options=("--device", "gpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_a_card(refused: Refused) -> None:
    refused("--device cuda", "no CUDA device", options=("--device", "cuda"))


def test_row_length_that_the_block_does_not_divide(cli: Cli, make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "checkpoint", layers=1, experts=2, width=160)
    out = tmp_path / "x.gguf"
    line = refusal(cli("gguf", "q4_k_m", source, "-o", out))
    assert "blk.0.ffn_down_exps.weight" in line
    assert "160" in line
    assert "256" in line
    assert not out.exists()
    # The remedy that the line gives is one.
    remedy = line.partition("--tensor-type '")[2].partition("'")[0]
    assert cli("gguf", "q4_k_m", source, "-o", out, "--tensor-type", remedy).code == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "base: [",
        "base: q9",
        "base: 7",
        "nobase: q8_0",
        "base: q8_0\nbsae: q8_0",
        "base: q8_0\ntensors: {match: a, type: q8_0}",
        "base: q8_0\ntensors: [{match: a}]",
        "base: q8_0\ntensors: [{match: '(', type: q8_0}]",
        "base: q8_0\noverflow_guard: maybe",
        "7: q8_0",
        "base: 2024-13-45",
        "base: !!python/object:os.system x",
        "base: !!int x",
        "- " * 3000,
        "a: &a [*a]",
        "\t",
    ],
)
def test_broken_recipe(refused: Refused, tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    refused(path, options=("--recipe", path))


def test_recipe_that_cannot_be_read(refused: Refused, tmp_path: Path) -> None:
    refused(tmp_path / "none.yaml", options=("--recipe", tmp_path / "none.yaml"))
    refused(tmp_path, options=("--recipe", tmp_path))
    (tmp_path / "latin.yaml").write_bytes(b"base: \xff")
    refused(tmp_path / "latin.yaml", options=("--recipe", tmp_path / "latin.yaml"))


# Numbers


@pytest.mark.parametrize("option", ["--memory", "--split-max-size"])
@pytest.mark.parametrize("value", ["x", "0", "-1", "8X", "8 G B", "1e9", "nan", "inf", "", "9" * 400, "8GG"])
def test_option_that_is_no_size(refused: Refused, option: str, value: str) -> None:
    refused(option, options=(f"{option}={value}",))


@pytest.mark.parametrize("value", ["1", "10K", "50M"])
def test_memory_too_small(refused: Refused, value: str) -> None:
    refused("--memory", options=("--memory", value))
    assert list(refused.out.parent.iterdir()) == [], "nothing was begun, so nothing stays behind"


@pytest.mark.parametrize("value", ["1", "2K", "60K"])
def test_split_size_that_a_tensor_does_not_fit(refused: Refused, value: str) -> None:
    line = refused("tensor", "--split-max-size", options=("--split-max-size", value))
    remedy = int(line.rpartition(" ")[2])
    assert remedy > 0


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", ""])
def test_threads_that_are_no_number(refused: Refused, value: str) -> None:
    refused("--threads", options=(f"--threads={value}",))


@pytest.mark.parametrize(
    "arguments",
    [("gguf", "--nonsense"), ("nonsense",), ("gguf",), ("inspect",), ("--nonsense",), ("gguf", "a", "b", "c")],
)
def test_usage(cli: Cli, arguments: tuple[str, ...]) -> None:
    refusal(cli(*arguments))


# The command line itself


def test_no_arguments_show_the_help(cli: Cli) -> None:
    result = cli()
    assert "Usage:" in result.out + result.err
    assert "inspect" in result.out + result.err
    assert len((result.out + result.err).splitlines()) > 5, "the help is not pressed into one line"


def test_interrupt(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quantkit.run.gguf.convert.publish", interrupted)
    result = refused.cli("gguf", "q8_0", refused.source, "-o", refused.out)
    assert result.code == 130
    (line,) = result.error_lines
    assert "repeat the same command" in line
    refused.nothing_there()
    monkeypatch.undo()


def test_unforeseen_error_is_one_line_as_well(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("quantkit.run.gguf.convert.publish", broken)
    result = refused.cli("gguf", "q8_0", refused.source, "-o", refused.out)
    assert result.code == 1
    assert result.error_lines == ["quantkit: error: ZeroDivisionError: two lines (--debug shows where)"]


@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_a_traceback(cli: Cli, tmp_path: Path, before: bool) -> None:
    arguments: list[object] = ["inspect", tmp_path / "nothing"]
    arguments.insert(0 if before else 2, "--debug")
    result = cli(*arguments)
    assert result.code == 2
    assert result.err.startswith("Traceback")
    assert result.error_lines[-1].startswith("quantkit: error: ")


def test_a_refusal_with_json_leaves_stdout_empty(refused: Refused, damaged: Damage) -> None:
    damaged.shard_of(NORM).unlink()
    refused("missing", options=("--json",))


def test_names_with_blanks_are_shown_as_they_are(cli: Cli, tmp_path: Path) -> None:
    name = "two  blanks and ünïcödé 🙂"
    assert name in refusal(cli("inspect", tmp_path / name))

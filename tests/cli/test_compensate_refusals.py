"""`quantkit gguf` with --compensate or several types that cannot be: exit code 2, one line, nothing written."""

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

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "my-tokens.safetensors"
    return saved(path, np.random.default_rng(0).integers(0, 500, (4, 32)))


@pytest.fixture
def refused(cli: Cli, tiny_checkpoint: Path, tokens: Path, out: Path) -> Refused:
    """The one line of a refused command, which leaves nothing behind. Tokens are given unless an option gives some."""

    def check(
        *naming: object,
        options: tuple[object, ...] = (),
        types: str = "q4_0",
        source: Path = tiny_checkpoint,
        out: Path = out,
        plain: bool = False,
    ) -> str:
        before = sorted(path.name for path in out.parent.iterdir()) if out.parent.is_dir() else []
        told = {"--tokens", "--calibration"} & {str(option).partition("=")[0] for option in options}
        text = () if plain else ("--compensate",) if told else ("--compensate", "--tokens", tokens)
        line = refusal(cli("gguf", types, source, "-o", out, *text, *options))
        for word in naming:
            assert str(word) in line
        assert (sorted(path.name for path in out.parent.iterdir()) if out.parent.is_dir() else []) == before
        return line

    return check


@pytest.mark.parametrize(
    "option",
    [
        ("--calibration", "smoke"),
        ("--samples", "3"),
        ("--sequence-length", "64"),
        ("--tokens", "t"),
        ("--min-tokens-per-expert", "256"),  # the default, but said
        ("--precision", "auto"),
    ],
)
def test_options_that_need_compensate(refused: Refused, option: tuple[str, str]) -> None:
    refused(option[0], "--compensate", options=option, plain=True)


def test_no_imatrix_with_compensate(refused: Refused, tmp_path: Path) -> None:
    refused("--imatrix", "--compensate", "drop one", options=("--imatrix", tmp_path / "i.gguf"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tokens", "absent"), ["absent"]),
        (("--calibration", "no-such-corpus"), ["no-such-corpus"]),
        (("--samples", "3"), ["--samples", "--tokens"]),
        (("--device", "tpu"), ["--device 'tpu'", "cpu or cuda"]),
        (("--precision", "half"), ["--precision 'half'", "float32"]),
        (("--memory", "much"), ["--memory 'much'"]),
        (("--memory", "1M"), ["--memory", "MB"]),
        (("--min-tokens-per-expert", "-1"), ["--min-tokens-per-expert"]),
        (("--tensor-type", "token_embd=iq2_s"), ["token_embd.weight", "importance", "calibration has no data"]),
        (("--tensor-type", "nothing=q8_0"), ["nothing"]),
        (("--split-max-size", "1K"), ["--split-max-size"]),
    ],
)
def test_options_that_cannot_be(refused: Refused, options: tuple[str, ...], words: list[str]) -> None:
    refused(*words, options=options)


@pytest.mark.parametrize("mix", ["f32", "f16", "bf16"])
def test_nothing_to_compensate(refused: Refused, mix: str) -> None:
    refused("--compensate", "no tensor", "Q4_K", types=mix)
    refused("--compensate", "no tensor", types=f"q4_0,{mix}")


def test_too_few_tokens(refused: Refused, tmp_path: Path) -> None:
    few = saved(tmp_path / "few", np.zeros((1, 16)))
    refused(f"--tokens {few}", "16 tokens", "--samples", options=("--tokens", few))


def test_ids_beyond_the_vocabulary(refused: Refused, tmp_path: Path) -> None:
    wrong = saved(tmp_path / "wrong", np.full((4, 32), 100_000))
    refused(wrong, options=("--tokens", wrong))


def test_tokens_of_another_tokenizer(
    refused: Refused, cli: Cli, tiny_checkpoint: Path, tiny_m2: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("the expert of a layer is the unit of work\n" * 40)
    built = tmp_path / "built.safetensors"
    command = ("calibration", "build", tmp_path / "text.txt", "--tokenizer", tiny_checkpoint, "-o", built)
    assert cli(*command).code == 0
    refused(built, "another tokenizer", options=("--tokens", built), source=tiny_m2)


# Several types


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(
    ("types", "words"),
    [
        ("q4_k_m,Q4_K_M", ["q4_k_m is named twice"]),
        ("q4_0,q8_0,q4_0", ["q4_0 is named twice"]),
        ("q4_0,", ["unknown type ''"]),
        (",q4_0", ["unknown type ''"]),
        ("q4_0;q8_0", ["unknown type 'q4_0;q8_0'"]),
        ("q4_0,q9", ["unknown type 'q9'"]),
    ],
)
def test_types_that_cannot_be(refused: Refused, types: str, words: list[str], plain: bool) -> None:
    refused(*words, types=types, plain=plain)


def test_one_recipe_for_several_types(refused: Refused, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: q4_0\n")
    refused("--recipe", recipe, "one base", types="q4_0,q8_0", options=("--recipe", recipe))


@pytest.mark.parametrize("plain", [True, False])
def test_a_folder_that_cannot_be_made(refused: Refused, out: Path, plain: bool) -> None:
    (out.parent / "file").write_text("precious")
    refused(out.parent / "file", "is a file", types="q4_0,q8_0", out=out.parent / "file", plain=plain)
    missing = out.parent / "missing" / "folder"
    refused(missing.parent, "does not exist", types="q4_0,q8_0", out=missing, plain=plain)


@pytest.mark.parametrize("plain", [True, False])
def test_a_new_folder_goes_again(refused: Refused, out: Path, plain: bool) -> None:
    """What is wrong is found after it was made."""
    refused("nothing", types="q4_0,q8_0", out=out.parent / "new", plain=plain,
            options=("--tensor-type", "nothing=q8_0"))  # fmt: skip


@pytest.mark.parametrize("plain", [True, False])
def test_one_of_the_outputs_exists(refused: Refused, out: Path, plain: bool) -> None:
    second = out.with_name("model-Q8_0.gguf")
    second.write_text("precious")
    refused(second, "output exists", "--force", types="q4_0,q8_0", plain=plain)
    assert second.read_text() == "precious"


def test_a_report_exists(refused: Refused, out: Path) -> None:
    report = out.with_name("model.quantkit.json")
    report.write_text("precious")
    refused(report, "output exists", "--force")
    assert report.read_text() == "precious"


# Inputs and outputs that are the same, or damaged


def test_an_output_over_the_tokens(refused: Refused, tokens: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(tokens, tmp_path / "model.gguf"))
    refused(copy, "--tokens", out=copy, options=("--tokens", copy, "--force"))
    several = Path(shutil.copy(tokens, tmp_path / "model-Q8_0.gguf"))
    refused(several, "--tokens", out=copy, types="q4_0,q8_0", options=("--tokens", several, "--force"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable(refused: Refused, out: Path) -> None:
    out.parent.chmod(0o500)
    refused("not writable")
    out.parent.chmod(0o700)


def test_a_disk_that_is_too_small(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=500_000))
    line = refused("free", "another disk", types="q8_0,q4_0")
    assert "still needs" in line


def test_a_folder_of_layers_that_is_not_ours(refused: Refused, out: Path) -> None:
    folder = out.with_name("model.gguf.layers")
    folder.mkdir()
    (folder / "diary.txt").write_text("precious")
    refused(folder / "diary.txt", options=("--force",))
    assert (folder / "diary.txt").read_text() == "precious"


def test_what_enters_is_not_finite(cli: Cli, damaged: Damage, tokens: Path, out: Path) -> None:
    """The norm before the experts multiplies by so much that squares overflow; the line says where and what to do."""
    name = "model.layers.0.post_attention_layernorm.weight"
    damaged.replace(name, torch.full((256,), 1e25).to(torch.bfloat16))
    result = cli("gguf", "q4_0", damaged.folder, "-o", out, "--compensate", "--tokens", tokens)
    assert result.code == 1
    (line,) = result.error_lines
    assert "model.layers.0.block_sparse_moe.experts." in line
    assert "not finite" in line
    assert "--precision float32" in line
    assert "--tensor-type" in line
    assert left(out) == ["model.gguf.layers", "model.gguf.partial"]


def test_weights_beyond_the_type(cli: Cli, damaged: Damage, tokens: Path, out: Path) -> None:
    name = "model.layers.0.self_attn.k_proj.weight"
    damaged.replace(f"{name}_scale_inv", torch.full((1, 2), 1e4))
    result = cli("gguf", "q4_0", damaged.folder, "-o", out, "--compensate", "--tokens", tokens)
    line = refusal(result)
    assert name in line
    assert "blk.0.attn_k.weight" in line
    assert "--tensor-type" in line

"""`quantkit awq`, `gptq` and `rtn` with every bad input: exit code 2, one line, nothing written, nothing replaced."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness import Cli, Damage, MakeCheckpoint
from refusals import left, refusal
from token_files import saved

METHODS = ("awq", "gptq", "rtn")
CALIBRATED = ("awq", "gptq")
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twice as many tokens as the small checkpoint needs."""
    path = tmp_path_factory.mktemp("tokens") / "my-tokens.safetensors"
    return saved(path, np.random.default_rng(0).integers(0, 500, (4, 32)))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "quantized"


@pytest.fixture
def refused(cli: Cli, small_checkpoint: Path, tokens: Path, out: Path) -> Refused:
    """The one line of a refused command, which leaves nothing behind. Tokens are given unless an option gives some."""

    def check(
        method: str,
        *naming: object,
        options: tuple[object, ...] = (),
        source: Path = small_checkpoint,
        out: Path = out,
        before: tuple[str, ...] = (),
    ) -> str:
        told = {"--tokens", "--calibration"} & {str(option).partition("=")[0] for option in options}
        text = () if method == "rtn" or told else ("--tokens", tokens)
        line = refusal(cli(method, source, "-o", out, *text, *options))
        for word in naming:
            assert str(word) in line
        if out.parent.is_dir():
            assert left(out) == sorted(before), "nothing was begun, so nothing stays behind"
        return line

    return check


# Formats, grids, attention


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("awq", ("--bits", "8"), ["--bits 8", "awq", "4"]),
        ("awq", ("--bits", "3"), ["--bits 3", "awq", "4"]),
        ("gptq", ("--bits", "3"), ["--bits 3", "gptq", "4 or 8"]),
        ("rtn", ("--bits", "16"), ["--bits 16", "compressed-tensors", "4 or 8"]),
        ("rtn", ("--bits", "8", "--format", "awq"), ["--bits 8", "awq"]),
        ("rtn", ("--bits", "x"), ["--bits"]),
        ("awq", ("--group-size", "16"), ["--group-size 16", "32, 64, 128"]),
        ("gptq", ("--group-size", "256"), ["--group-size 256", "32, 64, 128"]),
        ("rtn", ("--group-size", "0"), ["--group-size 0", "32, 64, 128"]),
        ("rtn", ("--group-size", "-2"), ["--group-size -2", "-1"]),
        ("awq", ("--format", "gguf"), ["--format gguf", "awq, gptq, compressed-tensors"]),
        ("gptq", ("--format", "GPTQ"), ["--format GPTQ", "awq, gptq, compressed-tensors"]),
        ("rtn", ("--format", ""), ["--format", "awq, gptq, compressed-tensors"]),
        ("rtn", ("--attention", "q8"), ["--attention q8", "bf16, fp8, int4"]),
        ("awq", ("--attention", "fp8"), ["--attention fp8", "awq", "compressed-tensors"]),
        ("gptq", ("--attention", "fp8"), ["--attention fp8", "gptq", "compressed-tensors"]),
        ("rtn", ("--attention", "fp8", "--format", "gptq"), ["--attention fp8", "gptq", "compressed-tensors"]),
        ("rtn", ("--asymmetric",), ["--asymmetric", "--symmetric", "awq"]),
        ("awq", ("--asymmetric", "--format", "gptq"), ["--asymmetric", "--symmetric", "awq"]),
        ("gptq", ("--asymmetric",), ["--asymmetric"]),
        ("gptq", ("--desc-act",), ["--desc-act", "vLLM", "leave it out"]),
        ("gptq", ("--act-order", "--format", "compressed-tensors"), ["--desc-act", "vLLM", "leave it out"]),
        ("rtn", ("--then-gptq",), ["--then-gptq"]),
        ("rtn", ("--samples", "4"), ["--samples"]),
    ],
    ids=str,
)
def test_what_a_format_cannot_hold(refused: Refused, method: str, options: tuple[str, ...], words: list[str]) -> None:
    refused(method, *words, options=options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("size", "what"), [({"width": 192}, "experts' width"), ({"hidden": 320}, "hidden size")])
def test_group_size_that_does_not_divide_the_model(
    refused: Refused,
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    method: str,
    size: dict[str, int],
    what: str,
) -> None:
    source = make_checkpoint(tmp_path / "narrow", layers=1, experts=2, **size)
    for options in ((), ("--group-size", "128")):
        refused(method, "--group-size 128", what, *size.values(), "--group-size 64", source=source, options=options)


@pytest.mark.parametrize("method", METHODS)
def test_fp8_attention_of_a_bf16_source(refused: Refused, bf16_small_checkpoint: Path, method: str) -> None:
    options = ("--attention", "fp8", "--format", "compressed-tensors")
    refused(method, "--attention fp8", "--attention bf16", "self_attn", source=bf16_small_checkpoint, options=options)


# Layers and tensor parallelism


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("layers", "word"), [("2", "0 to 1"), ("0-5", "0 to 1"), ("last", "61"), ("", "61"), ("1-0", "0-1"), ("0,1", "all")]
)
def test_layers_that_cannot_be_kept(refused: Refused, method: str, layers: str, word: str) -> None:
    refused(method, "--keep-layers", repr(layers), word, options=("--keep-layers", layers))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tp", "3"), ["--tp 3", "4 heads", "1, 2, 4"]),
        (("--tp", "8"), ["--tp 8", "4 heads", "1, 2, 4"]),
        (("--tp", "0"), ["--tp"]),
        (("--tp", "x"), ["--tp"]),
        (("--tp", "4", "--group-size", "128"), ["--group-size 128", "--tp 4", "64", "--group-size 64 or 32 or -1"]),
    ],
    ids=str,
)
def test_tensor_parallelism_that_cannot_be(
    refused: Refused, method: str, options: tuple[str, ...], words: list[str]
) -> None:
    refused(method, *words, options=options)


# Calibration


@pytest.mark.parametrize("method", CALIBRATED)
@pytest.mark.parametrize("count", [1, 63])
def test_too_few_tokens(refused: Refused, tmp_path: Path, method: str, count: int) -> None:
    """Two of four experts see each token: 64 tokens are 32 for each expert."""
    path = saved(tmp_path / "few", np.zeros((1, count)))
    refused(method, path, "64 (32 per expert)", "--samples", options=("--tokens", path))


@pytest.mark.parametrize("method", CALIBRATED)
def test_too_little_text(refused: Refused, tiny_m2: Path, tmp_path: Path, method: str) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one two three")
    refused(method, "text.txt", "128", "--samples", options=("--calibration", path), source=tiny_m2)


@pytest.mark.parametrize("method", CALIBRATED)
def test_inputs_that_cannot_be_read(refused: Refused, tmp_path: Path, method: str) -> None:
    refused(method, "absent.txt", options=("--calibration", tmp_path / "absent.txt"))
    refused(method, "absent.bin", options=("--tokens", tmp_path / "absent.bin"))
    refused(method, "nonsense", options=("--calibration", "nonsense"))
    path = saved(tmp_path / "t", np.full((1, 100), 512))
    refused(method, path, "vocabulary of 512", options=("--tokens", path))


@pytest.mark.parametrize("method", CALIBRATED)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--samples", "2"), ["--samples", "--tokens"]),
        (("--calibration", "smoke"), ["--calibration", "--tokens"]),
        (("--sequence-length", "1"), ["--sequence-length"]),
        (("--min-tokens-per-expert", "-1"), ["--min-tokens-per-expert"]),
    ],
    ids=str,
)
def test_options_of_the_text(
    refused: Refused, tokens: Path, method: str, options: tuple[str, ...], words: list[str]
) -> None:
    refused(method, *words, options=("--tokens", tokens, *options))


# The machine


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", ["much", "0", "1", "50M"])
def test_memory(refused: Refused, method: str, size: str) -> None:
    refused(method, "--memory", options=("--memory", size))


@pytest.mark.parametrize("method", CALIBRATED)
def test_device_and_precision(refused: Refused, method: str) -> None:
    refused(method, "--device", "gpu", "cpu or cuda", options=("--device", "gpu"))
    refused(method, "--precision", "float16", "auto", options=("--precision", "float16"))
    if not torch.cuda.is_available():
        refused(method, "--device cuda", "no CUDA device", options=("--device", "cuda"))


# Sources


def test_without_an_output_the_folder_is_here_and_named_after_the_source(
    cli: Cli, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("rtn", small_checkpoint).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-RTN-INT4"]


@pytest.mark.parametrize("method", METHODS)
def test_source_that_is_no_checkpoint(refused: Refused, tokens: Path, tmp_path: Path, method: str) -> None:
    for source in (tmp_path / "absent", tmp_path, tokens):
        refused(method, source, source=source)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["awq", "gptq", "compressed-tensors", "mxfp4"])
def test_source_that_is_quantized_already(refused: Refused, damaged: Damage, method: str, kind: str) -> None:
    damaged.edit_json("config.json", quantization_config={"quant_method": kind, "bits": 4})
    refused(method, "config.json", "already quantized", kind, "FP8", source=damaged.folder)


@pytest.mark.parametrize("method", METHODS)
def test_shard_that_is_missing(refused: Refused, damaged: Damage, method: str) -> None:
    shard = min(damaged.folder.glob("*.safetensors"))
    shard.unlink()
    refused(method, shard, "repeat the download", source=damaged.folder)


# Outputs


@pytest.mark.parametrize("method", METHODS)
def test_output_in_no_folder(refused: Refused, tmp_path: Path, method: str) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("absent", "file"):
        refused(method, tmp_path / folder, out=tmp_path / folder / "x")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["quantized", "quantized.partial"])
def test_output_that_is_a_file(refused: Refused, out: Path, method: str, name: str) -> None:
    out.with_name(name).write_text("precious")
    refused(method, name, "folder", options=("--force",), before=(name,))
    assert out.with_name(name).read_text() == "precious"


@pytest.mark.parametrize("method", METHODS)
def test_output_that_is_or_holds_the_source(refused: Refused, damaged: Damage, method: str) -> None:
    before = {path.name: path.read_bytes() for path in damaged.folder.iterdir()}
    for path in (damaged.folder, damaged.folder.parent):
        refused(method, path, "source", source=damaged.folder, out=path, options=("--force",), before=tuple(left(path)))
    assert {path.name: path.read_bytes() for path in damaged.folder.iterdir()} == before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("force", [(), ("--force",)], ids=str)
def test_folder_that_is_not_ours(refused: Refused, out: Path, method: str, force: tuple[str, ...]) -> None:
    """--force replaces what quantkit has written, not somebody's documents."""
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    refused(method, out, "quantkit did not write", options=force, before=(out.name,))
    assert (out / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("method", METHODS)
def test_output_exists(refused: Refused, cli: Cli, small_checkpoint: Path, out: Path, method: str) -> None:
    assert cli("rtn", small_checkpoint, "-o", out).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    refused(method, f"{out}: output exists", "--force", before=(out.name,))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("method", CALIBRATED)
def test_output_that_holds_the_tokens(
    refused: Refused, cli: Cli, small_checkpoint: Path, tokens: Path, out: Path, method: str
) -> None:
    assert cli("rtn", small_checkpoint, "-o", out).code == 0
    path = Path(shutil.copyfile(tokens, out / "t.safetensors"))
    refused(method, out, "--tokens", options=("--tokens", path, "--force"), before=(out.name,))
    assert path.read_bytes() == tokens.read_bytes()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [250, 300])
def test_output_whose_name_is_too_long(refused: Refused, out: Path, method: str, length: int) -> None:
    refused(method, "xxx", out=out.with_name("x" * length))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write and read everything")
def test_folder_that_is_not_writable(refused: Refused, out: Path, method: str) -> None:
    out.parent.chmod(0o500)
    refused(method, out.parent, "not writable")
    out.parent.chmod(0o700)


@pytest.mark.parametrize("method", METHODS)
def test_disk_too_small(refused: Refused, out: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**6, used=10**6, free=0))
    refused(method, "free")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("there", [True, False], ids=["to-a-folder", "to-nothing"])
def test_output_that_is_a_link(refused: Refused, out: Path, method: str, there: bool) -> None:
    target = out.with_name("target")
    if there:
        target.mkdir()
    out.symlink_to(target)
    refused(method, f"{out}: is a link", "-o", options=("--force",), before=(out.name, *["target"] * there))


def test_sidecar_that_is_missing_is_found_before_the_work(refused: Refused, damaged: Damage) -> None:
    (damaged.folder / "vocab.json").unlink(missing_ok=True)
    (damaged.folder / "vocab.json").symlink_to("nowhere")
    refused("rtn", "vocab.json", "missing", source=damaged.folder)

"""The folder that awq, gptq and rtn write: names, dtypes and shapes, values near the source's, the rest untouched."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import Cli, MakeCheckpoint
from int4_folders import SIZE, Wanted, config, distance, is_attention, original, table, tensors
from integer_reference import dequantized
from safetensors.numpy import save_file

Make = Callable[..., Path]
Weights = dict[str, torch.Tensor]

RUNS = {
    ("rtn",): Wanted("compressed-tensors"),
    ("rtn", "--format", "awq"): Wanted("awq"),
    ("rtn", "--format", "awq", "--asymmetric", "--group-size", "64"): Wanted("awq", group=64),
    ("rtn", "--format", "gptq", "--group-size", "-1"): Wanted("gptq", group=-1),
    ("rtn", "--bits", "8", "--group-size", "32"): Wanted("compressed-tensors", bits=8, group=32),
    ("rtn", "--attention", "int4", "--keep-layers", "1"): Wanted("compressed-tensors", attention="int4", kept=(1,)),
    ("rtn", "--attention", "fp8"): Wanted("compressed-tensors", attention="fp8"),
    ("gptq",): Wanted("gptq"),
    ("gptq", "--bits", "8", "--group-size", "-1"): Wanted("gptq", bits=8, group=-1),
    ("gptq", "--format", "compressed-tensors", "--attention", "fp8", "--keep-layers", "0"): Wanted(
        "compressed-tensors", attention="fp8", kept=(0,)
    ),
    ("awq",): Wanted("awq"),
    ("awq", "--symmetric", "--then-gptq", "--keep-layers", "1"): Wanted("awq", kept=(1,)),
    ("awq", "--format", "compressed-tensors", "--group-size", "32"): Wanted("compressed-tensors", group=32),
}
GATE = "block_sparse_moe.gate"
UNSCALED = {run: wanted for run, wanted in RUNS.items() if run[0] != "awq"}
SCALED = {run: wanted for run, wanted in RUNS.items() if run[0] == "awq"}


@pytest.fixture(scope="module")
def source(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "checkpoint", **SIZE)


@pytest.fixture(scope="module")
def weights(source: Path) -> dict[str, torch.Tensor]:
    """The source's weights in float32."""
    return original(source)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "t.safetensors"
    save_file({"ids": np.random.default_rng(0).integers(0, 500, (64, 32)).astype(np.int32)}, path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, ...], Path]]:
    return tmp_path_factory.mktemp("made"), {}


@pytest.fixture
def make(cli: Cli, source: Path, tokens: Path, folders: tuple[Path, dict[tuple[str, ...], Path]]) -> Make:
    """The output of a command line, made once for all tests."""
    parent, made = folders

    def run(*arguments: str) -> Path:
        if arguments not in made:
            out = parent / str(len(made))
            method, *options = arguments
            text = () if method == "rtn" else ("--tokens", tokens)
            result = cli(method, source, "-o", out, *text, *options)
            assert result.code == 0, result.err
            assert sorted(path.name for path in parent.iterdir()) == sorted(
                str(number) for number in range(len(made) + 1)
            )
            made[arguments] = out
        return made[arguments]

    return run


# Everything that is not quantized


@pytest.mark.parametrize("run", RUNS, ids=" ".join)
def test_names_dtypes_and_shapes(make: Make, source: Path, run: tuple[str, ...]) -> None:
    assert table(make(*run)) == RUNS[run].table(source)


@pytest.mark.parametrize("run", RUNS, ids=" ".join)
def test_files(make: Make, source: Path, run: tuple[str, ...]) -> None:
    folder = make(*run)
    along = ["chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*along, "config.json", "model.safetensors", "quantkit.json"]
    )
    for name in along:
        assert (folder / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("run", RUNS, ids=" ".join)
def test_configuration_but_for_one_key(make: Make, source: Path, run: tuple[str, ...]) -> None:
    before, after = config(source), config(make(*run))
    assert list(before) == list(after)
    assert before.pop("quantization_config") != after.pop("quantization_config")
    assert before == after


@pytest.mark.parametrize("run", RUNS, ids=" ".join)
def test_what_is_not_quantized_keeps_its_bytes(make: Make, source: Path, run: tuple[str, ...]) -> None:
    """AWQ alone changes the router and the norm before the experts, unless a layer's experts are kept."""
    before, after, wanted = tensors(source), tensors(make(*run)), RUNS[run]
    scaled = [layer for layer in range(SIZE["layers"]) if run[0] == "awq" and layer not in wanted.kept]
    changed = {f"model.layers.{layer}.{name}.weight" for layer in scaled for name in ("post_attention_layernorm", GATE)}
    kept = [name for name, (dtype, _) in table(source).items() if dtype != "F8_E4M3" and "_scale" not in name]
    assert len(kept) == 3 + SIZE["layers"] * 6
    for name in kept:
        same = torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8))
        assert same or name in changed, name


@pytest.mark.parametrize("run", RUNS, ids=" ".join)
def test_widened_weights_are_the_sources(make: Make, weights: Weights, run: tuple[str, ...]) -> None:
    after, wanted = tensors(make(*run)), RUNS[run]
    count = 0
    for name, weight in weights.items():
        widened = ".experts." in name or (is_attention(name) and wanted.attention == "bf16")
        if widened and not wanted.packs(name):
            assert torch.equal(after[name], weight.bfloat16()), name
            count += 1
    attention = 8 if wanted.attention == "bf16" else 0
    assert count == attention + 12 * len(wanted.kept)


def test_fp8_attention_keeps_its_bytes(make: Make, source: Path) -> None:
    before, after = tensors(source), tensors(make("rtn", "--attention", "fp8"))
    names = [name for name in before if is_attention(name)]
    assert len(names) == 8
    for name in names:
        assert torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8))
        assert torch.equal(before[f"{name}_scale_inv"], after[f"{name}_scale"])


# Quantized weights, read by another reader


def quantized(folder: Path, wanted: Wanted) -> Weights:
    read = dequantized(folder, config(folder)["quantization_config"])
    return {name: weight for name, weight in read.items() if wanted.packs(name)}


@pytest.mark.parametrize("run", UNSCALED, ids=" ".join)
def test_quantized_weights_are_near_the_source(make: Make, weights: Weights, run: tuple[str, ...]) -> None:
    """Gaussian weights on 16 levels lose about 0.1 of their norm, on 256 a sixteenth of that; GPTQ trades some."""
    wanted = RUNS[run]
    found = quantized(make(*run), wanted)
    experts = (SIZE["layers"] - len(wanted.kept)) * SIZE["experts"] * 3
    assert len(found) == experts + (8 if wanted.attention == "int4" else 0)
    for name, weight in found.items():
        lost = distance(weight, weights[name])
        limit = 0.14 if wanted.bits == 4 else 0.014
        assert 0 < lost < limit * (1.5 if run[0] == "gptq" else 1), name


@pytest.mark.parametrize("run", SCALED, ids=" ".join)
def test_awq_folds_what_it_scales(make: Make, weights: Weights, run: tuple[str, ...]) -> None:
    """Undo the factors that router and norm show: w1 is near the source; so are w3 and w2 with one factor per row."""
    wanted = RUNS[run]
    before, after = weights, tensors(make(*run))
    found = quantized(make(*run), wanted)
    for layer in set(range(SIZE["layers"])) - set(wanted.kept):
        prefix = f"model.layers.{layer}."
        norm, gate = (f"{prefix}{name}.weight" for name in ("post_attention_layernorm", GATE))
        factors = before[norm] / after[norm].float()
        assert (factors > 0).all()
        assert torch.allclose(after[gate], before[gate] * factors, rtol=1e-6), "logits are those of the source"
        for expert in range(SIZE["experts"]):
            w1, w2, w3 = (f"{prefix}block_sparse_moe.experts.{expert}.{name}.weight" for name in ("w1", "w2", "w3"))
            assert distance(found[w1] / factors, before[w1]) < 0.2
            middle = (found[w2] * before[w2]).sum(0) / before[w2].square().sum(0)
            assert (middle > 0).all()
            assert distance(found[w2] / middle, before[w2]) < 0.2
            assert distance(found[w3] * middle[:, None] / factors, before[w3]) < 0.2


def test_one_solution_is_the_same_in_both_formats(make: Make) -> None:
    folders = [make("gptq"), make("gptq", "--format", "compressed-tensors")]
    ours, theirs = (quantized(folder, Wanted("any")) for folder in folders)
    assert ours.keys() == theirs.keys()
    assert len(ours) == SIZE["layers"] * SIZE["experts"] * 3
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


# quantization_config, as formats.md says runtimes match it


def test_configuration_of_awq(make: Make) -> None:
    found = config(make("awq", "--symmetric", "--then-gptq", "--keep-layers", "1"))["quantization_config"]
    meta = found.pop("meta")
    assert found == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": [
            "self_attn",
            "block_sparse_moe.gate",
            ".mlp.gate",
            "lm_head",
            "layers.1.mlp.",
            "layers.1.block_sparse_moe.",
        ],
    }
    assert "quantkit" in str(meta)
    assert "AWQ" in str(meta)


def test_configuration_of_gptq(make: Make) -> None:
    found = config(make("gptq"))["quantization_config"]
    assert "GPTQ" in str(found.pop("meta"))
    assert 0 < found.pop("damp_percent") < 1
    assert found == {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "static_groups": True,
        "true_sequential": True,
        "dynamic": {"-:.*self_attn.*": {}, "-:.*gate$": {}, "-:lm_head": {}},
    }


def test_configuration_of_compressed_tensors(make: Make) -> None:
    options = ("--format", "compressed-tensors", "--attention", "fp8", "--keep-layers", "0")
    found = config(make("gptq", *options))["quantization_config"]
    assert found["quant_method"] == "compressed-tensors"
    assert found["format"] == "mixed-precision"
    assert found["ignore"] == ["lm_head", r"re:.*layers\.0\.(mlp|block_sparse_moe)\..*"]
    attention, experts = found["config_groups"].values()
    assert attention["targets"] == [r"re:.*self_attn\.(q|k|v|o)_proj$"]
    assert attention["weights"]["block_structure"] == [128, 128]
    assert experts["targets"] == [r"re:.*\.experts\.\d+\.w[123]$"]
    assert (experts["weights"]["num_bits"], experts["weights"]["group_size"]) == (4, 128)
    assert experts["weights"]["actorder"] is None


def test_rounding_is_called_rounding(make: Make) -> None:
    for folder in (make("rtn"), make("rtn", "--format", "awq"), make("rtn", "--format", "gptq", "--group-size", "-1")):
        quantization = config(folder)["quantization_config"]
        assert "round to nearest" in str(quantization["meta"])
        assert "round to nearest" in (folder / "quantkit.json").read_text()
        assert not quantization.keys() & {"damp_percent", "static_groups", "true_sequential"}


# Shards


def test_several_shards(make: Make, cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantkit.run.int4 import quantize

    limit = 400_000
    whole = make("rtn")
    monkeypatch.setattr(quantize, "lay_out", functools.partial(quantize.lay_out, max_bytes=limit))
    out = tmp_path / "parts"
    assert cli("rtn", source, "-o", out).code == 0
    shards = sorted(out.glob("*.safetensors"))
    assert [path.name for path in shards] == [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)
    ]
    assert len(shards) > 3
    assert max(path.stat().st_size for path in shards) <= limit
    index: dict[str, Any] = json.loads((out / "model.safetensors.index.json").read_text())
    found, expected = tensors(out), tensors(whole)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert index["weight_map"].keys() == found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
        assert name in table_of(out / index["weight_map"][name])


@functools.cache
def table_of(shard: Path) -> frozenset[str]:
    from safetensors import safe_open

    with safe_open(shard, framework="pt") as file:
        return frozenset(file.keys())


# Other sources


def test_bf16_source(cli: Cli, make: Make, make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """The same weights rounded to BF16 beforehand."""
    source = make_checkpoint(tmp_path / "bf16", bf16=True, **SIZE)
    out = tmp_path / "out"
    assert cli("rtn", source, "-o", out).code == 0
    assert table(out) == table(make("rtn"))
    before, after = tensors(source), tensors(out)
    for name in before:
        if ".experts." not in name:
            assert torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8)), name
    assert "quantization_config" not in config(source)
    assert config(out)["quantization_config"] == config(make("rtn"))["quantization_config"]


@pytest.mark.parametrize("run", [("rtn",), ("rtn", "--format", "awq"), ("gptq",)], ids=" ".join)
@pytest.mark.parametrize("command", ["rtn", "gptq"])
def test_our_own_output_is_no_source(
    make: Make, cli: Cli, tokens: Path, tmp_path: Path, run: tuple[str, ...], command: str
) -> None:
    text = () if command == "rtn" else ("--tokens", tokens)
    result = cli(command, make(*run), "-o", tmp_path / "x", *text)
    assert result.code == 2
    (line,) = result.error_lines
    assert "already quantized" in line
    assert list(tmp_path.iterdir()) == []

"""`quantkit gguf` when all is well: what it prints and writes."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from harness import Cli, CliResult, Damage
from refusals import MOE, left


def test_terminal_text(run: Callable[..., CliResult], out: Path) -> None:
    result = run(mix="q4_k_m")
    assert result.code == 0
    assert result.err == ""
    size = f"{out.stat().st_size / 1e3:.1f} kB" if out.stat().st_size < 1e6 else f"{out.stat().st_size / 1e6:.1f} MB"
    assert f"-> {size}, " in result.out
    assert "Q4_K_M: " in result.out
    assert " bits per weight, " in result.out
    assert "tensors: 7 F32, " in result.out  # five norms, the router and its bias
    assert result.out.splitlines()[-1] == str(out)
    assert left(out) == ["model.gguf"]


def test_json(run: Callable[..., CliResult], out: Path, damaged: Damage) -> None:
    result = run("--json", mix="q4_k_m")
    assert result.err == ""
    assert len(result.out.splitlines()) == 1
    found = result.json()
    reader = gguf.GGUFReader(out)
    weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
    assert found["outputs"] == [str(out)]
    assert found["mix"] == "Q4_K_M"
    assert found["weights"] == weights
    assert found["output_bytes"] == out.stat().st_size
    assert found["bits_per_weight"] == round(
        sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(out).tensors) * 8 / weights, 4
    )
    index = damaged.index()["weight_map"]
    headers = 0
    for shard in set(index.values()):
        headers += 8 + struct.unpack("<Q", (damaged.folder / shard).read_bytes()[:8])[0]
    assert found["source_bytes"] == sum((damaged.folder / s).stat().st_size for s in set(index.values())) - headers
    assert sum(found["types"].values()) == len(reader.tensors)
    assert found["types"]["F32"] == sum(tensor.tensor_type.name == "F32" for tensor in reader.tensors)
    assert found["resumed_items"] == 0
    assert found["items"] >= len(reader.tensors)
    assert 0 < found["seconds"] < 600
    assert found["peak_rss_bytes"] > 10**7
    assert found["ignored_tensors"] == []


def test_whose_search_it_was(run: Callable[..., CliResult], out: Path) -> None:
    for option, name in (("own", "quantkit "), ("ggml", "xllamacpp ")):
        told = run("--kquants", option, "--force", "--json", mix="q4_k_s").json()["quantizer"]
        assert told.startswith(name)
        assert gguf.GGUFReader(out).fields["quantkit.quantizer"].contents() == told
        assert f"; quantizer: {told}" in run("--kquants", option, "--force", mix="q4_k_s").out


def test_overflow_guard_is_reported(run: Callable[..., CliResult]) -> None:
    change = {"tensor": "blk.0.ffn_down_exps.weight", "from": "Q4_K", "to": "Q6_K"}
    assert run("--json", mix="q4_k_s").json()["overflow_changes"] == [change]
    text = run("--force", mix="q4_k_s").out
    assert "overflow guard: blk.0.ffn_down_exps.weight Q4_K -> Q6_K" in text
    assert run("--json", "--force", "--no-overflow-guard", mix="q4_k_s").json()["overflow_changes"] == []


def test_prediction_layers_are_reported(run: Callable[..., CliResult], damaged: Damage) -> None:
    import torch

    name = "model.layers.1.enorm.weight"
    damaged.edit_tensors(damaged.shard_of("model.norm.weight"), **{name: torch.zeros(4)})
    assert run("--json").json()["ignored_tensors"] == [name]
    assert "left aside: 1 tensors" in run("--force").out


def test_rules_and_recipe(run: Callable[..., CliResult], out: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: q4_k_m\ntensors:\n  - {match: 'attn_[qk]\\.', type: f16}\n")
    assert run("--recipe", recipe, "--tensor-type", "attn_q=bf16", mix="q4_k_m").code == 0
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}
    assert types["blk.0.attn_q.weight"] == "BF16"
    assert types["blk.0.attn_k.weight"] == "F16"
    assert types["blk.0.attn_v.weight"] == "Q6_K"
    assert types["blk.0.attn_q_norm.weight"] == "F32"


def test_numbers_of_threads_do_not_change_the_bytes(run: Callable[..., CliResult], out: Path) -> None:
    outputs = set()
    for threads in (1, 3, 1000):
        assert run("--threads", threads, "--force", mix="q4_k_m").code == 0
        outputs.add(out.read_bytes())
    assert len(outputs) == 1


def test_weights_are_those_of_the_checkpoint(run: Callable[..., CliResult], out: Path, damaged: Damage) -> None:
    assert run(mix="f32").code == 0
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(out).tensors}
    from safetensors.torch import load_file

    stored = {}
    for shard in damaged.folder.glob("*.safetensors"):
        stored |= load_file(shard)
    for index, projection in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        for expert in range(2):
            name = f"{MOE}experts.{expert}.{projection}.weight"
            scale = stored[name + "_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
            expected = (stored[name].float() * scale).numpy()
            assert np.array_equal(tensors[f"blk.0.ffn_{index}_exps.weight"][expert], expected)
    assert np.array_equal(tensors["output_norm.weight"], stored["model.norm.weight"].float().numpy())


def test_split_names(run: Callable[..., CliResult], out: Path) -> None:
    result = run("--split-max-size", "700K", "--json")
    names = [Path(path).name for path in result.json()["outputs"]]
    count = len(names)
    assert count >= 2
    assert names == [f"model-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    assert left(out) == names
    assert all(path.stat().st_size <= 700_000 for path in out.parent.iterdir())
    assert sum(path.stat().st_size for path in out.parent.iterdir()) == result.json()["output_bytes"]
    assert not out.exists()


def test_force_replaces(run: Callable[..., CliResult], out: Path) -> None:
    out.write_text("old")
    assert run().code == 2
    assert out.read_text() == "old"
    assert run("--force").code == 0
    assert out.read_bytes()[:4] == b"GGUF"
    assert left(out) == ["model.gguf"]


def test_force_leaves_the_old_output_until_the_new_one_is_complete(
    run: Callable[..., CliResult], out: Path, kill_after: Callable[[int], None]
) -> None:
    out.write_text("old")
    kill_after(3)
    assert run("--force", "--threads", 1).code == 130
    assert out.read_text() == "old"


def test_names_with_blanks_and_other_alphabets(cli: Cli, damaged: Damage, tmp_path: Path) -> None:
    source = damaged.folder.rename(tmp_path / "Модель  zwei 🙂")
    target = tmp_path / "ein  Ausgang — ü.gguf"
    result = cli("gguf", "q8_0", source, "-o", target)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == str(target)
    assert gguf.GGUFReader(target).fields["general.name"].contents() == source.name


def test_names_that_are_no_utf8(damaged: Damage, tmp_path: Path) -> None:
    """In a process of its own, whose stdout is strict."""
    source = os.fsencode(tmp_path) + b"/model-\xff"
    os.rename(damaged.folder, source)
    target = os.fsencode(tmp_path) + b"/out-\xff.gguf"
    done = subprocess.run(
        [sys.executable, "-m", "quantkit", "gguf", "q8_0", source, "-o", target], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert os.path.exists(target)


def test_symbolic_links_in_the_source_are_followed(run: Callable[..., CliResult], damaged: Damage, out: Path) -> None:
    blobs = damaged.folder.parent / "blobs"
    blobs.mkdir()
    for path in list(damaged.folder.iterdir()):  # as the Hub's cache has it
        path.rename(blobs / path.name)
        path.symlink_to(blobs / path.name)
    assert run().code == 0
    assert left(out) == ["model.gguf"]


def test_output_over_a_link_leaves_its_target(run: Callable[..., CliResult], out: Path) -> None:
    target = out.parent / "target"
    target.write_text("precious")
    out.symlink_to(target)
    assert run().code == 2
    assert run("--force").code == 0
    assert target.read_text() == "precious"
    assert not out.is_symlink()


# Resumption


def test_json_holds_only_json_numbers(run: Callable[..., CliResult]) -> None:
    """No NaN or Infinity, which JSON does not have."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads(run("--json").out, parse_constant=refuse)


def test_relative_paths(cli: Cli, damaged: Damage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("gguf", "q8_0", damaged.folder.name, "-o", "x.gguf", "--json")
    assert result.json()["outputs"] == ["x.gguf"]
    assert gguf.GGUFReader("x.gguf").fields["general.name"].contents() == damaged.folder.name
    shutil.rmtree(damaged.folder)

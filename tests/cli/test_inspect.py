"""`quantkit inspect` on checkpoints and GGUF files, sound and spoilt ones."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from harness import Cli, CliResult, Damage
from safetensors import safe_open

MOE = "model.layers.0.block_sparse_moe."


def refused(result: CliResult, *naming: object) -> None:
    assert result.code == 2, result.err
    assert result.out == ""
    (line,) = result.error_lines
    assert line.startswith("quantkit: error: ")
    for word in naming:
        assert str(word) in line


def problems(result: CliResult) -> list[tuple[str, str]]:
    assert (result.code, result.err) == (0, "")
    return [(problem["severity"], problem["text"]) for problem in result.json()["problems"]]


def worth_a_look(result: CliResult) -> list[tuple[str, str]]:
    return [(severity, text) for severity, text in problems(result) if severity != "note"]


# Checkpoints


def test_checkpoint_as_json(cli: Cli, small_checkpoint: Path) -> None:
    result = cli("inspect", small_checkpoint, "--json")
    assert len(result.out.splitlines()) == 1
    found = result.json()
    assert found["kind"] == "checkpoint"
    assert found["path"] == str(small_checkpoint)
    shards = sorted(small_checkpoint.glob("*.safetensors"))
    assert found["files"] == len(shards)
    assert found["file_bytes"] == sum(shard.stat().st_size for shard in shards)
    stored: dict[str, tuple[str, list[int]]] = {}
    for shard in shards:
        with safe_open(shard, "pt") as library:
            for name in library.keys():  # noqa: SIM118
                stored[name] = (library.get_slice(name).get_dtype(), library.get_slice(name).get_shape())
    assert {tensor["name"]: (tensor["type"], tensor["shape"]) for tensor in found["tensors"]} == stored
    weights = sum(int(np.prod(shape)) for name, (_, shape) in stored.items() if not name.endswith("_scale_inv"))
    assert found["total"]["weights"] == weights
    assert found["total"]["bytes"] == sum(tensor["bytes"] for tensor in found["tensors"])
    assert found["total"]["tensors"] == len(stored)
    assert found["facts"]["n_experts"] == 4
    assert sum(role["weights"] for role in found["roles"].values()) == weights
    assert "unknown" not in found["roles"]
    assert found["types"]["F8_E4M3"]["weights"] == sum(
        int(np.prod(shape)) for dtype, shape in stored.values() if dtype == "F8_E4M3"
    )


def test_checkpoint_on_a_terminal(cli: Cli, small_checkpoint: Path) -> None:
    result = cli("inspect", small_checkpoint)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{small_checkpoint}: checkpoint, ")
    for role in ("token_embd", "attn_output", "ffn_gate_inp", "ffn_down_exps", "exp_probs_b", "total"):
        assert role in result.out
    assert "n_experts 4" in result.out


def test_a_sound_checkpoint_has_no_problems_beyond_the_official_one(cli: Cli, small_checkpoint: Path) -> None:
    result = cli("inspect", small_checkpoint, "--json")
    assert worth_a_look(result) == []
    ((severity, text),) = problems(result)
    assert severity == "note"
    assert "metadata.total_size" in text


@pytest.mark.parametrize(
    ("name", "severity"),
    [("tokenizer.json", "warning"), ("generation_config.json", "warning"), ("chat_template.jinja", "warning")],
)
def test_missing_sidecar(cli: Cli, damaged: Damage, name: str, severity: str) -> None:
    (damaged.folder / name).unlink()
    ((found, text),) = worth_a_look(cli("inspect", damaged.folder, "--json"))
    assert found == severity
    assert name in text or "chat template" in text


def test_a_model_that_does_not_fit_is_a_problem_not_an_error(cli: Cli, damaged: Damage) -> None:
    name = MOE + "experts.0.w1.weight"
    damaged.edit_tensors(damaged.shard_of(name), **{name: ...})
    result = cli("inspect", damaged.folder, "--json")
    ((severity, text),) = worth_a_look(result)
    assert severity == "error"
    assert name in text
    assert set(result.json()["roles"]) == {"unknown"}
    assert f"error: {damaged.folder}: tensor {name} is missing" in cli("inspect", damaged.folder).out


def test_another_architecture_can_be_looked_at(cli: Cli, damaged: Damage) -> None:
    damaged.edit_json("config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    ((severity, text),) = worth_a_look(cli("inspect", damaged.folder, "--json"))
    assert severity == "error"
    assert "llama" in text


def test_prediction_layers_are_a_note(cli: Cli, damaged: Damage) -> None:
    damaged.edit_tensors(damaged.shard_of("model.norm.weight"), **{"model.layers.2.enorm.weight": torch.zeros(4)})
    result = cli("inspect", damaged.folder, "--json")
    assert worth_a_look(result) == []
    assert any("1 tensors of multi-token-prediction" in text for _, text in problems(result))


@pytest.mark.parametrize("metadata", [None, [], "x", 7, {}, {"total_size": None}, {"total_size": "big"}])
def test_odd_metadata_in_the_index(cli: Cli, damaged: Damage, metadata: object) -> None:
    index = damaged.index() | {"metadata": metadata}
    damaged.index_path.write_text(json.dumps(index))
    assert worth_a_look(cli("inspect", damaged.folder, "--json")) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("architectures", 7), ("rope_parameters", [1]), ("quantization_config", "fp8"), ("num_hidden_layers", None)],
)
def test_an_odd_config_is_a_problem(cli: Cli, damaged: Damage, key: str, value: object) -> None:
    damaged.edit_json("config.json", **{key: value})
    ((severity, _),) = worth_a_look(cli("inspect", damaged.folder, "--json"))
    assert severity == "error"


def test_damage_that_hides_the_tensors_is_an_error(cli: Cli, damaged: Damage, tmp_path: Path) -> None:
    shard = damaged.shard_of("model.norm.weight")
    os.truncate(shard, shard.stat().st_size - 1)
    refused(cli("inspect", damaged.folder), shard)
    shard.unlink()
    refused(cli("inspect", damaged.folder, "--json"), shard)
    damaged.index_path.unlink()
    refused(cli("inspect", damaged.folder), damaged.folder)
    (damaged.folder / "config.json").unlink()
    refused(cli("inspect", damaged.folder), damaged.folder / "config.json")
    refused(cli("inspect", tmp_path / "nothing"), tmp_path / "nothing")


# GGUF


@pytest.fixture(scope="module")
def sound(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of the tiny checkpoint in Q8_0."""
    from quantkit.recipe.recipe import recipe_from_options
    from quantkit.run.gguf.convert import write_gguf

    out = tmp_path_factory.mktemp("sound") / "model.gguf"
    write_gguf(tiny_checkpoint, out, recipe_from_options("q8_0"), quiet=True)
    return out


Rewrite = Callable[..., Path]


@pytest.fixture
def rewrite(sound: Path, tmp_path: Path) -> Rewrite:
    """A copy of the sound GGUF, written by the gguf package, with other keys and types (`...` leaves one out)."""

    def copy(keys: dict[str, Any] | None = None, types: dict[str, Any] | None = None) -> Path:
        keys, types = keys or {}, types or {}
        reader = gguf.GGUFReader(sound)
        path = tmp_path / "copy.gguf"
        architecture = keys.pop("general.architecture", "minimax-m2")
        writer = gguf.GGUFWriter(path, architecture)
        for field in reader.fields.values():
            name = field.name
            if name.startswith("GGUF.") or name == "general.architecture" or keys.get(name) is ...:
                continue
            value = keys.get(name, field.contents())
            kind = gguf.GGUFValueType.STRING if isinstance(value, str) else field.types[0]
            element = field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, value, kind, sub_type=element)
        for tensor in reader.tensors:
            kind = types.get(tensor.name, tensor.tensor_type)
            if kind is ...:
                continue
            data = tensor.data
            if kind != tensor.tensor_type:
                block, size = gguf.GGML_QUANT_SIZES[kind]
                shape = [int(length) for length in reversed(tensor.shape)]
                data = np.zeros([*shape[:-1], shape[-1] // block * size], np.uint8)
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return copy


def test_gguf_as_json(cli: Cli, sound: Path) -> None:
    result = cli("inspect", sound, "--json")
    assert len(result.out.splitlines()) == 1
    assert problems(result) == []
    found = result.json()
    reader = gguf.GGUFReader(sound)
    assert found["kind"] == "gguf"
    assert found["files"] == 1
    assert found["file_bytes"] == sound.stat().st_size
    assert found["facts"]["general.architecture"] == "minimax-m2"
    assert found["facts"]["minimax-m2.expert_count"] == 2
    assert [(t["name"], t["type"], t["shape"], t["bytes"]) for t in found["tensors"]] == [
        (t.name, t.tensor_type.name, [int(n) for n in reversed(t.shape)], int(t.n_bytes)) for t in reader.tensors
    ]
    assert found["total"]["weights"] == sum(int(tensor.n_elements) for tensor in reader.tensors)
    # A block of Q8_0 holds 32 weights in 34 bytes.
    assert found["types"]["Q8_0"]["bits_per_weight"] == 8.5
    assert "unknown" not in found["roles"]


def test_gguf_on_a_terminal(cli: Cli, sound: Path) -> None:
    result = cli("inspect", sound)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{sound}: gguf, 1 file, ")
    assert result.out.splitlines()[-1] == "no problems found"
    for word in ("ffn_gate_exps", "exp_probs_b", "Q8_0", "mix Q8_0"):
        assert word in result.out


def test_the_copy_itself_has_no_problems(cli: Cli, rewrite: Rewrite) -> None:
    assert problems(cli("inspect", rewrite(), "--json")) == []


@pytest.mark.parametrize("name", ["blk.0.ffn_gate_inp.weight", "blk.0.attn_norm.weight", "output_norm.weight"])
def test_quantized_router_or_norm(cli: Cli, rewrite: Rewrite, name: str) -> None:
    path = rewrite(types={name: gguf.GGMLQuantizationType.Q8_0})
    ((severity, text),) = problems(cli("inspect", path, "--json"))
    assert severity == "error"
    assert f"{name} is Q8_0" in text


@pytest.mark.parametrize("name", ["blk.0.ffn_up_exps.weight", "output.weight", "blk.0.exp_probs_b.bias"])
def test_missing_tensor(cli: Cli, rewrite: Rewrite, name: str) -> None:
    ((severity, text),) = problems(cli("inspect", rewrite(types={name: ...}), "--json"))
    assert severity == "error"
    assert f"1 tensors are missing, first {name}" in text


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q4_0", "Q5_1", "Q2_K"])
def test_type_that_overflows_in_the_last_layer(cli: Cli, rewrite: Rewrite, kind: str) -> None:
    types = {"blk.0.ffn_down_exps.weight": gguf.GGMLQuantizationType[kind]}
    ((severity, text),) = problems(cli("inspect", rewrite(types=types), "--json"))
    assert severity == "warning"
    assert f"blk.0.ffn_down_exps.weight is {kind}" in text
    types = {"blk.0.ffn_up_exps.weight": gguf.GGMLQuantizationType[kind]}
    assert problems(cli("inspect", rewrite(types=types), "--json")) == []


@pytest.mark.parametrize("key", ["tokenizer.chat_template", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.tokens"])
def test_missing_key(cli: Cli, rewrite: Rewrite, key: str) -> None:
    path = rewrite(keys={key: ...})
    ((severity, text),) = problems(cli("inspect", path, "--json"))
    assert severity == "warning"
    assert key in text
    assert f"warning: key {key} is missing" in cli("inspect", path).out


def test_another_architecture_is_not_checked(cli: Cli, rewrite: Rewrite) -> None:
    ((severity, text),) = problems(cli("inspect", rewrite(keys={"general.architecture": "llama"}), "--json"))
    assert severity == "note"
    assert "llama" in text


@pytest.mark.timeout(20)
@pytest.mark.parametrize("value", ["two", ..., 0, 2**32 - 1])
def test_odd_number_of_layers(cli: Cli, rewrite: Rewrite, value: object) -> None:
    """Anything but a hang or an unforeseen error: the number comes from a file."""
    result = cli("inspect", rewrite(keys={"minimax-m2.block_count": value}), "--json")
    assert result.code in {0, 2}, result.err
    assert result.code == 2 or worth_a_look(result) != []


@pytest.mark.parametrize("cut", [0, 3, 4, 20, 100, 5000, -1, -40])
def test_truncated_gguf(cli: Cli, sound: Path, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.gguf"
    raw = sound.read_bytes()
    path.write_bytes(raw[:cut])
    refused(cli("inspect", path), path)


@pytest.mark.parametrize(
    "raw", [b"", b"GGUF", b"GGML" + bytes(100), b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), bytes(64), b"x" * 4096]
)
def test_what_is_no_gguf(cli: Cli, tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(raw)
    refused(cli("inspect", path), path)


def test_a_string_that_is_no_utf8(cli: Cli, sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    raw = sound.read_bytes()
    assert raw.count(b"minimax-m2") > 1
    path.write_bytes(raw.replace(b"quantkit 0", b"quantkit\xff0"))
    refused(cli("inspect", path), path)


def test_flipped_bytes_of_a_gguf_header(cli: Cli, sound: Path, tmp_path: Path) -> None:
    raw = sound.read_bytes()
    rng = np.random.default_rng(7)
    path = tmp_path / "odd.gguf"
    for place in rng.integers(0, 12_000, 60):
        spoilt = bytearray(raw)
        spoilt[place] ^= int(rng.integers(1, 256))
        path.write_bytes(spoilt)
        result = cli("inspect", path, "--json")
        assert result.code in {0, 2}, (place, result.err)
        assert len(result.error_lines) == (result.code == 2), (place, result.err)


@pytest.fixture
def split(tiny_checkpoint: Path, tmp_path: Path) -> list[Path]:
    from quantkit.recipe.recipe import recipe_from_options
    from quantkit.run.gguf.convert import write_gguf

    (tmp_path / "split").mkdir()
    recipe = recipe_from_options("q8_0")
    out = tmp_path / "split" / "model.gguf"
    return list(write_gguf(tiny_checkpoint, out, recipe, split_max_size=700_000, quiet=True).outputs)


def test_any_part_stands_for_a_split_model(cli: Cli, split: list[Path], sound: Path) -> None:
    whole = cli("inspect", sound, "--json").json()
    assert len(split) > 1
    for part in split:
        result = cli("inspect", part, "--json")
        assert problems(result) == []
        assert result.json()["files"] == len(split)
        assert result.json()["file_bytes"] == sum(path.stat().st_size for path in split)
        assert result.json()["tensors"] == whole["tensors"]


def test_missing_part(cli: Cli, split: list[Path]) -> None:
    split[1].unlink()
    refused(cli("inspect", split[0]), split[1], "missing")


@pytest.mark.parametrize(
    "name", ["model-00001-of-00000.gguf", "model-00003-of-00002.gguf", "model-00000-of-00001.gguf"]
)
def test_impossible_part_names(cli: Cli, sound: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(sound, tmp_path / name)
    refused(cli("inspect", tmp_path / name), tmp_path)

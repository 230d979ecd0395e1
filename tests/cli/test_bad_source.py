"""Damaged and unsupported checkpoints through the command line: exit code 2, one line, nothing under the final name."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Damage
from refusals import EXPERT, MOE, NORM, SCALE, Refused
from safetensors.torch import load_file, save_file


def test_missing_shard(refused: Refused, damaged: Damage) -> None:
    shard = damaged.shard_of(NORM)
    shard.unlink()
    refused(shard, "missing")


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_truncated_shard(refused: Refused, damaged: Damage, left: int) -> None:
    shard = damaged.shard_of(EXPERT)
    with shard.open("r+b") as file:
        file.truncate(left % shard.stat().st_size)
    line = refused(shard)
    if left == -1:  # the header is whole, so the tensor at the end is known
        header = json.loads(damaged_header(shard))
        last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
        assert last in line


def damaged_header(shard: Path) -> bytes:
    raw = shard.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return raw[8 : 8 + length]


@pytest.mark.parametrize("length", [10**8, 2**64 - 1])
def test_header_longer_than_the_file(refused: Refused, damaged: Damage, length: int) -> None:
    shard = damaged.shard_of(NORM)
    with shard.open("r+b") as file:
        file.write(struct.pack("<Q", length))
    refused(shard, f"header claims {length} bytes")


def test_header_that_is_not_json(refused: Refused, damaged: Damage) -> None:
    shard = damaged.shard_of(NORM)
    with shard.open("r+b") as file:
        file.seek(9)
        file.write(b"\n\n\xff")
    refused(shard)


def test_tensor_that_is_not_in_its_shard(refused: Refused, damaged: Damage) -> None:
    other = next(shard for shard in damaged.folder.glob("*.safetensors") if shard != damaged.shard_of(EXPERT))
    damaged.edit_weight_map(**{EXPERT: other.name})
    refused(other, EXPERT)


@pytest.mark.parametrize("shard", ["../checkpoint/model.safetensors", "/etc/passwd", "C:\\x", "", None, "a\nb\0"])
def test_weight_map_that_leaves_the_folder(refused: Refused, damaged: Damage, shard: object) -> None:
    damaged.edit_weight_map(**{EXPERT: shard})
    refused(damaged.index_path, EXPERT)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": 7}', '{"weight_map": null}'])
def test_broken_index(refused: Refused, damaged: Damage, text: str) -> None:
    damaged.index_path.write_text(text)
    refused(damaged.index_path)


def test_tensor_name_with_line_breaks(refused: Refused, damaged: Damage) -> None:
    damaged.edit_tensors(damaged.shard_of(NORM), **{"a\nb\r\nc\x85d\u2028e": torch.zeros(2)})
    refused(damaged.shard_of(NORM), "is not known")


# Tensors


def test_scale_of_the_wrong_shape(refused: Refused, damaged: Damage) -> None:
    shard = damaged.replace(SCALE, torch.ones(5, 5))
    refused(shard, SCALE, "[5, 5]")


def test_missing_scale(refused: Refused, damaged: Damage) -> None:
    damaged.edit_tensors(damaged.shard_of(SCALE), **{SCALE: ...})
    refused(damaged.folder, SCALE)


@pytest.mark.parametrize("raw", [b"\x7f", b"\xff"])
def test_nan_in_a_weight(refused: Refused, damaged: Damage, raw: bytes) -> None:
    refused(damaged.poke(EXPERT, raw, at=300), EXPERT, "NaN or Inf")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_not_finite_scale(refused: Refused, damaged: Damage, value: str) -> None:
    refused(damaged.poke(SCALE, struct.pack("<f", float(value))), SCALE, "NaN or Inf")


@pytest.mark.parametrize("name", [NORM, "lm_head.weight", MOE + "gate.weight", MOE + "e_score_correction_bias"])
def test_nan_in_an_unquantized_weight(refused: Refused, damaged: Damage, name: str) -> None:
    wide = ".block_sparse_moe." in name
    refused(damaged.poke(name, struct.pack("<I", 0x7FC00000) if wide else b"\xc0\x7f"), name, "NaN or Inf")


@pytest.mark.parametrize("mix", ["f16", "q8_0", "q4_k_m", "iq4_xs", "mxfp4_moe"])
def test_weight_too_large_for_half_precision(refused: Refused, damaged: Damage, mix: str) -> None:
    shard = damaged.poke("model.embed_tokens.weight", struct.pack("<H", 0x7F00))  # 1.7e38
    refused(shard, "model.embed_tokens.weight", "--tensor-type", mix=mix)


def test_unknown_tensor(refused: Refused, damaged: Damage) -> None:
    shard = damaged.shard_of(NORM)
    damaged.edit_tensors(shard, **{"model.layers.0.self_attn.q_proj.bias": torch.zeros(4)})
    refused(shard, "model.layers.0.self_attn.q_proj.bias", "not known")


# config.json and its neighbours


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"x"', "\ufeff{}", "[" * 100_000, '{"a":' + "1" * 5000 + "}"])
def test_broken_config(refused: Refused, damaged: Damage, text: str) -> None:
    (damaged.folder / "config.json").write_text(text)
    refused(damaged.folder / "config.json")


def test_missing_config(refused: Refused, damaged: Damage) -> None:
    (damaged.folder / "config.json").unlink()
    refused(damaged.folder / "config.json", "missing")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("model_type", None),
        ("architectures", ["LlamaForCausalLM"]),
        ("architectures", "x"),
        ("architectures", 7),
        ("hidden_size", None),
        ("num_hidden_layers", "2"),
        ("rope_parameters", [1]),
        ("quantization_config", {"quant_method": "awq", "bits": 4}),
        ("quantization_config", "fp8"),
        ("rms_norm_eps", None),
        ("num_local_experts", 2.0),
    ],
)
def test_unsupported_config(refused: Refused, damaged: Damage, key: str, value: object) -> None:
    damaged.edit_json("config.json", **{key: value})
    refused(damaged.folder / "config.json")


def test_missing_tokenizer(refused: Refused, damaged: Damage) -> None:
    (damaged.folder / "tokenizer.json").unlink()
    refused(damaged.folder / "tokenizer.json", "missing")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"7", b'{"a": "\xff"}'], ids=["empty", "cut", "list", "7", "latin"])
def test_broken_sidecar(refused: Refused, damaged: Damage, name: str, raw: bytes) -> None:
    (damaged.folder / name).write_bytes(raw)
    refused(damaged.folder / name)


@pytest.mark.parametrize("value", [None, [], {}, "BPE", {"type": "Unigram", "vocab": []}, {"type": "BPE", "vocab": []}])
def test_other_tokenizer(refused: Refused, damaged: Damage, value: object) -> None:
    damaged.edit_json("tokenizer.json", model=value)
    refused(damaged.folder / "tokenizer.json")


@pytest.mark.parametrize("token_id", [512, -1, 2**70, "7", None, 1.5, [1]])
def test_token_id_that_the_embedding_does_not_have(refused: Refused, damaged: Damage, token_id: object) -> None:
    model = json.loads((damaged.folder / "tokenizer.json").read_text())["model"]
    model["vocab"]["odd"] = token_id
    damaged.edit_json("tokenizer.json", model=model)
    refused(damaged.folder / "tokenizer.json", "odd")


@pytest.mark.parametrize(
    "added",
    [
        [{"id": 600, "content": "odd"}],
        [{"id": "3", "content": "odd"}],
        [{"content": "odd"}],
        [{"id": 3}],
        [7],
        7,
        {"odd": 3},
    ],
)
def test_added_tokens_that_make_no_sense(refused: Refused, damaged: Damage, added: object) -> None:
    damaged.edit_json("tokenizer.json", added_tokens=added)
    refused(damaged.folder / "tokenizer.json")


@pytest.mark.parametrize("merges", [[], None, [7], [["a", "b", "c"]], {"a": "b"}, ["a b", 7], [["a", "b"], ["c", 7]]])
def test_merges_that_make_no_sense(refused: Refused, damaged: Damage, merges: object) -> None:
    model = json.loads((damaged.folder / "tokenizer.json").read_text())["model"] | {"merges": merges}
    damaged.edit_json("tokenizer.json", model=model)
    refused(damaged.folder / "tokenizer.json")


def test_token_text_that_utf8_cannot_hold(refused: Refused, damaged: Damage) -> None:
    model = json.loads((damaged.folder / "tokenizer.json").read_text())["model"]
    model["vocab"]["\ud800"] = 500
    damaged.edit_json("tokenizer.json", model=model)
    refused(damaged.folder / "tokenizer.json")


def test_no_end_of_turn_token(refused: Refused, damaged: Damage) -> None:
    damaged.edit_json("tokenizer_config.json", eos_token=...)
    refused(damaged.folder, "end-of-turn")


@pytest.mark.parametrize("values", [{"top_k": 2**40}, {"top_k": -(2**40)}])
def test_sampling_values_that_the_format_cannot_hold(refused: Refused, damaged: Damage, values: dict[str, Any]) -> None:
    damaged.edit_json("generation_config.json", **values)
    refused(damaged.folder / "generation_config.json")


# Source and output


def test_single_file_checkpoint_that_is_damaged(refused: Refused, damaged: Damage) -> None:
    tensors = {}
    for shard in damaged.folder.glob("*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    damaged.index_path.unlink()
    single = damaged.folder / "model.safetensors"
    save_file(tensors, single)
    with single.open("r+b") as file:
        file.truncate(single.stat().st_size - 1)
    refused(single, "truncated")

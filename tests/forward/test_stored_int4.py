"""Weights out of AWQ, GPTQ and compressed-tensors folders: those of independent readers, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from harness import Damage
from integer_reference import dequantized
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantkit.errors import BadInput
from quantkit.forward.open_weights import open_tensors, open_weights
from quantkit.forward.stored import EXPERT_ROLES, role_shape
from quantkit.model.spec import Kind
from quantkit.model.tensors import role_places
from quantkit.run.int4.quantize import quantize_int4
from quantkit.run.int4.settings import Method, choose_settings

CPU = torch.device("cpu")
AWQ, GPTQ, COMPRESSED = ({"format_name": name} for name in ("awq", "gptq", "compressed-tensors"))
RUNS: dict[str, dict[str, Any]] = {
    "awq": AWQ,
    "awq, zero points": AWQ | {"symmetric": False, "group_size": 64, "attention": "int4"},
    "gptq": GPTQ | {"group_size": 32, "attention": "int4"},
    "gptq, rows of 8 bits": GPTQ | {"group_size": -1, "bits": 8},
    "gptq, a kept layer": GPTQ | {"kept_layers": (1,)},
    "compressed-tensors": COMPRESSED,
    "compressed-tensors, rows": COMPRESSED | {"group_size": -1, "attention": "int4"},
    "compressed-tensors, 8 bits": COMPRESSED | {"bits": 8, "group_size": 32, "attention": "fp8", "kept_layers": (0,)},
}
PACKED = "model.layers.0.block_sparse_moe.experts.1.w1"

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The synthetic checkpoint rounded with the options, each set of them once."""

    @cache
    def run(kept_layers: tuple[int, ...] = (), **options: Any) -> Path:
        settings = replace(choose_settings(Method.RTN, **options), kept_layers=kept_layers)
        out = tmp_path_factory.mktemp("int4") / "quantized"
        quantize_int4(small_checkpoint, out, settings, None, quiet=True)
        return out

    return run


@pytest.fixture
def spoil(make: Make, tmp_path: Path) -> Make:
    """A copy of a rounded checkpoint with other tensors, `...` for none, by name behind the packed matrix or whole."""

    def run(options: dict[str, Any], changes: dict[str, Any] | None = None) -> Path:
        folder = Path(shutil.copytree(make(**options), tmp_path / "spoilt"))
        shard = folder / "model.safetensors"
        named = {
            name if name.startswith("model.") else f"{PACKED}.{name}": new for name, new in (changes or {}).items()
        }
        kept = load_file(shard) | named
        save_file({name: value for name, value in kept.items() if value is not ...}, shard, metadata={"format": "pt"})
        return folder

    return run


def quantization(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


def reference(folder: Path) -> dict[str, Tensor]:
    return dequantized(folder, quantization(folder))


def check_every_weight(folder: Path, expected: dict[str, Tensor]) -> None:
    """All that a pass reads, in both precisions, and nothing but it was expected."""
    stored = open_tensors(folder)
    left = dict(expected)
    for role, layer in role_places(stored.hparams):
        for number in range(stored.hparams.n_experts if role.kind is Kind.EXPERT else 1):
            wanted = left.pop(role.source.format(layer=layer, expert=number))
            if layer is None:
                assert torch.equal(torch.from_numpy(stored.rows(role.name, None)), wanted)
                continue
            for dtype in (torch.float32, torch.bfloat16):
                out = torch.empty(role_shape(role, stored.hparams), dtype=dtype)
                stored.fill(role.name, layer, number, out)
                assert torch.equal(out, wanted.to(dtype)), (role.name, layer, number, dtype)
    assert not left
    stored.close()


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_every_weight_is_the_independent_readers(make: Make, options: dict[str, Any]) -> None:
    folder = make(**options)
    check_every_weight(folder, reference(folder))


def test_the_right_expert_of_the_right_layer(make: Make) -> None:
    folder = make(**COMPRESSED)
    expected = reference(folder)
    with open_weights(folder, torch.float32, CPU) as weights:
        found = weights.expert(1, 2)
    prefix = "model.layers.1.block_sparse_moe.experts.2."
    assert torch.equal(found.gate_up, torch.cat([expected[f"{prefix}w1.weight"], expected[f"{prefix}w3.weight"]]))
    assert torch.equal(found.down, expected[f"{prefix}w2.weight"])


def test_what_will_be_read_is_announced(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(**COMPRESSED)
    stored = open_tensors(folder)
    announced: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, offset, count, advice: announced.append(count))
    for role in EXPERT_ROLES:
        stored.will_need(role, 0, 1)
    nbytes = sum(announced)
    tensors = load_file(folder / "model.safetensors")
    assert nbytes == sum(value.nbytes for name, value in tensors.items() if ".0.block_sparse_moe.experts.1." in name)
    stored.close()


def test_compressed_tensors_with_zero_points_and_half_precision_scales(spoil: Make) -> None:
    """As llm-compressor writes asymmetric grids; packed by compressed-tensors' own code."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-8, 8, (256, 256), generator=generator, dtype=torch.int8)
    zeros = torch.randint(-8, 8, (256, 8), generator=generator, dtype=torch.int8)
    scales = torch.rand(256, 8, generator=generator).half()
    parts = {
        "weight_packed": pack_to_int32(codes, 4),
        "weight_zero_point": pack_to_int32(zeros, 4, packed_dim=0).contiguous(),
        "weight_scale": scales,
    }
    folder = spoil(COMPRESSED | {"group_size": 32}, parts)
    spread = [tensor.float().repeat_interleave(32, 1) for tensor in (zeros, scales)]
    assert torch.equal(packed_matrix(folder), (codes.float() - spread[0]) * spread[1])


def packed_matrix(folder: Path) -> Tensor:
    out = torch.empty(256, 256)
    open_tensors(folder).fill("ffn_gate_exps", 0, 1, out)
    return out


def test_gptq_without_an_order(make: Make, spoil: Make) -> None:
    orders = [name for name in load_file(make(**GPTQ) / "model.safetensors") if name.endswith("g_idx")]
    assert orders
    check_every_weight(spoil(GPTQ, dict.fromkeys(orders, ...)), reference(make(**GPTQ)))


def test_scales_that_are_not_finite_reach_the_weights(spoil: Make) -> None:
    folder = spoil(COMPRESSED, {"weight_scale": torch.full((256, 2), float("nan"), dtype=torch.bfloat16)})
    assert packed_matrix(folder).isnan().all()


CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another method": (COMPRESSED, {"quant_method": "mxfp4"}, "quantized with 'mxfp4'"),
    "awq for another kernel": (AWQ, {"version": "gemv"}, "version is 'gemv'; only gemm"),
    "three bits": (GPTQ, {"bits": 3}, "bits is 3; only 4 or 8"),
    "columns in another order": (GPTQ, {"desc_act": True}, "desc_act is True"),
    "the second version": (GPTQ, {"checkpoint_format": "gptq_v2"}, "checkpoint_format is 'gptq_v2'"),
    "other groups than said": (GPTQ, {"group_size": 32}, "4 bits in groups of 32, which config.json says"),
    "no group size": (AWQ, {"group_size": None}, "group_size is None"),
    "other compressed values": (COMPRESSED, {"format": "nvfp4-pack-quantized"}, "format is 'nvfp4-pack-quantized'"),
    "no groups": (COMPRESSED, {"config_groups": {}}, "config_groups is missing or empty"),
    "activations alone": (COMPRESSED, {"config_groups": {"group_0": {"weights": None}}}, "group_0 has no weights"),
}


@pytest.mark.parametrize(("options", "values", "says"), CONFIGS.values(), ids=CONFIGS)
def test_schemes_that_are_refused(spoil: Make, options: dict[str, Any], values: dict[str, Any], says: str) -> None:
    damage = Damage(spoil(options))
    damage.edit_json("config.json", quantization_config=quantization(damage.folder) | values)
    check_refused(damage.folder, says)


def check_refused(folder: Path, says: str) -> None:
    with pytest.raises(BadInput) as error:
        open_tensors(folder)
    assert str(folder) in str(error.value)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "a scale is missing": ({"weight_scale": ...}, f"{PACKED}.weight_scale is missing"),
    "a weight is missing": (
        {"weight_packed": ..., "weight_scale": ..., "weight_shape": ...},
        f"{PACKED}.weight is missing",
    ),
    "an order of columns": ({"weight_g_idx": torch.zeros(256, dtype=torch.int32)}, "weight_g_idx"),
    "a scale of another shape": ({"weight_scale": torch.ones(256, 3)}, f"{PACKED}.weight_packed"),
    "a scale of integers": ({"weight_scale": torch.ones(256, 2, dtype=torch.int32)}, "expected BF16"),
    "a tensor that nothing knows": ({"model.visual.weight": torch.zeros(2)}, "model.visual.weight is not known"),
}


@pytest.mark.parametrize(("changes", "says"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_are_refused(spoil: Make, changes: dict[str, Any], says: str) -> None:
    check_refused(spoil(COMPRESSED, changes), says)


def test_groups_out_of_order(spoil: Make) -> None:
    folder = spoil(GPTQ, {"g_idx": torch.arange(255, -1, -1, dtype=torch.int32) // 128})
    with pytest.raises(BadInput, match=r"experts\.1\.w1: g_idx: groups are not in the order"):
        packed_matrix(folder)


def test_a_file_that_is_neither(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"")
    with pytest.raises(BadInput, match=r"model\.bin: neither a \.gguf file nor a folder"):
        open_tensors(path)

"""Weights out of GGUFs: gguf-py's dequantization of the same file bit for bit, one expert at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from quantkit.checkpoint.index import open_checkpoint
from quantkit.errors import BadInput
from quantkit.formats.gguf.types import row_bytes
from quantkit.forward.open_weights import open_tensors, open_weights
from quantkit.forward.stored import EXPERT_ROLES, role_shape
from quantkit.forward.stored_gguf import GGUFTensors
from quantkit.model.spec import Kind
from quantkit.model.tensors import build_model, role_places
from quantkit.quantize import ggml_blocks
from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf.convert import write_gguf
from quantkit.run.gguf.plan import DEFAULT_SPLIT

Write = Callable[..., Path]
COLUMNS = 512
BLOCKED = (
    "Q8_0 Q6_K Q5_K Q5_0 Q5_1 Q4_K Q4_0 Q4_1 Q3_K Q2_K TQ1_0 TQ2_0 MXFP4 NVFP4 "
    "IQ4_NL IQ4_XS IQ3_S IQ3_XXS IQ2_S IQ2_XS IQ2_XXS IQ1_S IQ1_M"
).split()


@pytest.fixture(scope="module")
def write(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Write:
    """The synthetic checkpoint in a mix, the path of its first part; each once."""

    @cache
    def run(mix: str, split_max_size: int = DEFAULT_SPLIT) -> Path:
        out = tmp_path_factory.mktemp("gguf") / "model.gguf"
        result = write_gguf(
            small_checkpoint, out, recipe_from_options(mix), split_max_size=split_max_size, threads=1, quiet=True
        )
        return result.outputs[0]

    return run


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    parts = sorted(path.parent.glob("*.gguf"))
    entries = [entry for part in parts for entry in gguf.GGUFReader(part).tensors]
    return {
        entry.name: torch.from_numpy(np.array(dequantize(entry.data, entry.tensor_type), np.float32))
        for entry in entries
    }


@pytest.mark.parametrize("mix", ["bf16", "q8_0", "q4_k_m", "q2_k", "q5_1", "iq4_xs", "mxfp4_moe"])
def test_every_weight_is_the_independent_readers(write: Write, mix: str) -> None:
    stored, expected = GGUFTensors(write(mix)), tensors_of(write(mix))
    for role, layer in role_places(stored.hparams):
        wanted = expected.pop(role.gguf.format(layer=layer))
        if layer is None:
            assert torch.equal(torch.from_numpy(stored.rows(role.name, None)), wanted)
            continue
        for number in range(stored.hparams.n_experts if role.kind is Kind.EXPERT else 1):
            one = wanted[number] if role.kind is Kind.EXPERT else wanted
            for dtype in (torch.float32, torch.bfloat16):
                out = torch.empty(role_shape(role, stored.hparams), dtype=dtype)
                stored.fill(role.name, layer, number, out)
                assert torch.equal(out, one.to(dtype)), (role.name, layer, number, dtype)
    assert not expected
    stored.close()


@pytest.mark.parametrize("kind", BLOCKED)
def test_every_type_of_block(kind: str) -> None:
    """Any bytes are blocks; a scale among them may be NaN or infinite, on both sides then."""
    packed = np.random.default_rng(3).integers(0, 256, (64, row_bytes(kind, COLUMNS)), np.uint8)
    assert ggml_blocks.can_dequantize(kind)
    with np.errstate(all="ignore"):
        expected = dequantize(packed, gguf.GGMLQuantizationType[kind])
    found = ggml_blocks.dequantize(packed, kind, COLUMNS)
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(found).mean() > 0.5


def test_the_dimensions_are_the_checkpoints(write: Write, small_checkpoint: Path) -> None:
    assert GGUFTensors(write("q8_0")).hparams == build_model(open_checkpoint(small_checkpoint)).hparams


def test_parts_of_a_split_model(write: Write) -> None:
    whole, first = write("q8_0"), write("q8_0", 1_000_000)
    assert len(list(first.parent.glob("*.gguf"))) > 2
    assert first.name.startswith("model-00001-of-")
    pair = [open_weights(path, torch.float32, torch.device("cpu")) for path in (whole, first)]
    for layer, expert in ((0, 3), (1, 0)):
        one, other = (weights.exact_expert(layer, expert) for weights in pair)
        assert torch.equal(one.gate_up, other.gate_up)
        assert torch.equal(one.down, other.down)


def test_some_rows_of_a_matrix(write: Write) -> None:
    stored, expected = GGUFTensors(write("q4_k_m")), tensors_of(write("q4_k_m"))
    rows = torch.from_numpy(stored.rows("output", None, (100, 103)))
    assert torch.equal(rows, expected["output.weight"][100:103])


def test_only_an_experts_bytes_are_announced(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = GGUFTensors(write("q4_k_m"))
    (entry,) = [e for e in gguf.GGUFReader(write("q4_k_m")).tensors if e.name == "blk.1.ffn_down_exps.weight"]
    places: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, offset, nbytes, advice: places.append((offset, nbytes)))
    stored.will_need("ffn_down_exps", 1, 2)
    assert places == [(entry.data_offset + 2 * entry.n_bytes // 4, entry.n_bytes // 4)]


def test_only_an_experts_bytes_are_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counted(descriptor: int, buffers: Any, offset: int) -> int:
        read.append(preadv(descriptor, buffers, offset))
        return read[-1]

    preadv = os.preadv
    names = {f"blk.1.{role}.weight" for role in EXPERT_ROLES}
    experts = [e.n_bytes // 4 for e in gguf.GGUFReader(write("q4_k_m")).tensors if e.name in names]
    with open_weights(write("q4_k_m"), torch.float32, torch.device("cpu")) as weights:
        monkeypatch.setattr(os, "preadv", counted)
        weights.expert(1, 2)
        assert sum(read) == sum(experts)


def refused(path: Path) -> str:
    with pytest.raises(BadInput) as error:
        open_tensors(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def copy(write: Write, tmp_path: Path) -> Path:
    path = tmp_path / "copy.gguf"
    path.write_bytes(write("q8_0").read_bytes())
    return path


KEYS: dict[str, tuple[Any, str]] = {
    "minimax-m2.expert_gating_func": (1, "minimax-m2 models have 2"),
    "minimax-m2.embedding_length": (128, "has shape [512, 256], expected [512, 128]"),
    "minimax-m2.block_count": (20_000, "damaged"),
    "minimax-m2.expert_used_count": (0, "a positive number is needed"),
    "minimax-m2.rope.freq_base": (float("nan"), "a positive number is needed"),
}


@pytest.mark.parametrize("key", KEYS)
def test_keys_that_are_refused(copy: Path, key: str) -> None:
    value, says = KEYS[key]
    reader = gguf.GGUFReader(copy, "r+")
    field = reader.get_field(key)
    assert field is not None
    field.parts[field.data[0]][0] = value
    reader.data.flush()
    assert says in refused(copy)


NAMES = {
    b"minimax-m2.expert_count": (b"minimax-m2.expert_kount", "minimax-m2.expert_count is None"),
    b"blk.1.attn_k_norm.weight": (b"blk.1.attn_x_norm.weight", "blk.1.attn_k_norm.weight is missing"),
    b"token_embd.weight": (b"token_embx.weight", "token_embd.weight is missing"),
}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_there(copy: Path, name: bytes) -> None:
    other, says = NAMES[name]
    raw = copy.read_bytes()
    assert raw.count(name) == 1
    copy.write_bytes(raw.replace(name, other))
    assert says in refused(copy)


def test_a_tensor_that_nothing_knows(copy: Path) -> None:
    """One layer fewer than there are tensors for."""
    reader = gguf.GGUFReader(copy, "r+")
    field = reader.get_field("minimax-m2.block_count")
    assert field is not None
    field.parts[field.data[0]][0] = 1
    reader.data.flush()
    assert "tensor blk.1." in refused(copy)


def test_another_architecture(copy: Path) -> None:
    raw = copy.read_bytes()
    key = b"general.architecture"
    place = raw.index(b"minimax-m2", raw.index(key))
    copy.write_bytes(raw[:place] + b"minimax-m9" + raw[place + 10 :])
    assert "architecture 'minimax-m9'" in refused(copy)


def test_a_file_cut_short_while_it_is_read(copy: Path) -> None:
    stored = GGUFTensors(copy)
    with copy.open("r+b") as file:
        file.truncate(copy.stat().st_size // 2)
    with pytest.raises(BadInput, match=r"copy\.gguf: the file ends early"):
        stored.fill("ffn_norm", 1, 0, torch.empty(256))
    assert "truncated or damaged" in refused(copy)

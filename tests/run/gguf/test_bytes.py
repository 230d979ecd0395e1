"""With ggml's search every byte of tensor data equals its result on the dequantized float32 tensor."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from ggml_oracle import Source, ggml_bytes

from quantkit.quantize.rows import GGML
from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf.convert import write_gguf


def assert_equals_ggml(out: Path, source: Path) -> int:
    """Compare all tensors of `out`; return how many there were."""
    reader, original = gguf.GGUFReader(out), Source(source)
    for tensor in reader.tensors:
        weights = original.gguf_tensor(tensor.name)
        assert tuple(tensor.shape) == weights.shape[::-1], tensor.name
        assert np.ascontiguousarray(tensor.data).tobytes() == ggml_bytes(weights, tensor.tensor_type), tensor.name
    return len(reader.tensors)


def test_all_809_tensors_of_62_layers(layers62: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    write_gguf(layers62, out, recipe_from_options("q4_k_m"), kquants=GGML)
    assert assert_equals_ggml(out, layers62) == 62 * 13 + 3 == 809


@pytest.mark.parametrize(
    "mix", ["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q3_k_m", "q2_k", "q5_1", "iq4_nl", "iq4_xs", "iq3_m",
            "mxfp4_moe"]
)  # fmt: skip
def test_every_family_of_types(small_checkpoint: Path, tmp_path: Path, mix: str) -> None:
    out = tmp_path / "m.gguf"
    write_gguf(small_checkpoint, out, recipe_from_options(mix), kquants=GGML)
    assert assert_equals_ggml(out, small_checkpoint) == 2 * 13 + 3


def test_the_trained_fixture(tiny_m2: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    write_gguf(tiny_m2, out, recipe_from_options("q4_k_m"), kquants=GGML)
    assert assert_equals_ggml(out, tiny_m2) > 0


def test_a_bf16_checkpoint(bf16_small_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    write_gguf(bf16_small_checkpoint, out, recipe_from_options("q5_k_s"), kquants=GGML)
    assert assert_equals_ggml(out, bf16_small_checkpoint) == 2 * 13 + 3


def test_split_parts_hold_the_same_tensors(small_checkpoint: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    write_gguf(small_checkpoint, whole, recipe_from_options("q4_k_m"))
    result = write_gguf(small_checkpoint, tmp_path / "s.gguf", recipe_from_options("q4_k_m"), split_max_size=500_000)
    assert len(result.outputs) > 2
    assert result.outputs[0].name == f"s-00001-of-{len(result.outputs):05d}.gguf"
    assert all(path.stat().st_size <= 500_000 for path in result.outputs)
    expected = {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(whole).tensors}
    found = {t.name: t.data.tobytes() for path in result.outputs for t in gguf.GGUFReader(path).tensors}
    assert found == expected

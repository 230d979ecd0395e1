"""compressed-tensors files against the package of that name, and what runtimes look up in the configuration."""

import re
import warnings
from typing import Any

import numpy as np
import pytest
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils.match import match_name
from integer_matrices import (
    GROUP_SIZES,
    assert_same,
    decompressed,
    packed_tensors,
    random_matrix,
    read_by_llama_cpp,
    single_codes,
)
from transformers.utils.quantization_config import CompressedTensorsConfig

from quantkit.errors import BadInput
from quantkit.formats import compressed_tensors
from quantkit.formats.packed import FORMATS
from quantkit.formats.safetensors import TensorSpec
from quantkit.formats.scheme import Attention, Scheme
from quantkit.quantize.integers import WHOLE_ROW, IntegerGrid

PREFIX = "model.layers.0.block_sparse_moe.experts.3.w3"
EXPERT_NAMES = [f"model.layers.1.{moe}.experts.0.w{n}" for moe in ("mlp", "block_sparse_moe") for n in (1, 2, 3)]


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", [4, 8])
def test_the_package_reads_the_weights(bits: int, group_size: int) -> None:
    grid = IntegerGrid(bits, group_size, True)
    quantized = random_matrix(grid)
    tensors = packed_tensors(compressed_tensors, PREFIX, quantized, grid)
    weights = decompressed(PREFIX, tensors, bits, group_size, symmetric=True)
    np.testing.assert_array_equal(weights, quantized.dequantized())
    assert_same(compressed_tensors.unpack(compressed_tensors.pack(quantized, grid), grid), quantized)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_position_of_a_word(bits: int) -> None:
    grid = IntegerGrid(bits, 32, True)
    quantized = single_codes(grid)
    tensors = packed_tensors(compressed_tensors, PREFIX, quantized, grid)
    np.testing.assert_array_equal(decompressed(PREFIX, tensors, bits, 32, symmetric=True), quantized.dequantized())
    assert_same(compressed_tensors.unpack(compressed_tensors.pack(quantized, grid), grid), quantized)


@pytest.mark.full
@pytest.mark.parametrize("group_size", [32, 64, 128])  # it does not know whole rows
@pytest.mark.parametrize("bits", [4, 8])
def test_llama_cpp_reads_the_weights(bits: int, group_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = IntegerGrid(bits, group_size, True)
    quantized = random_matrix(grid)
    tensors = packed_tensors(compressed_tensors, PREFIX, quantized, grid)
    read = read_by_llama_cpp(compressed_tensors.quantization_config(Scheme(grid)), tensors, monkeypatch)
    np.testing.assert_array_equal(read[f"{PREFIX}.weight"], quantized.dequantized())


def integer_group(targets: list[str], group_size: int) -> dict[str, Any]:
    return {
        "targets": targets,
        "format": "pack-quantized",
        "weights": {
            "num_bits": 4,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": group_size,
            "dynamic": False,
            "actorder": None,
            "observer": "minmax",
        },
        "input_activations": None,
        "output_activations": None,
    }


def test_configuration() -> None:
    assert compressed_tensors.quantization_config(Scheme(IntegerGrid(4, 128, True))) == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*gate$"],
        "config_groups": {"group_0": integer_group([r"re:.*\.experts\.\d+\.w[123]$"], 128)},
    }


def test_configuration_with_fp8_attention() -> None:
    config = compressed_tensors.quantization_config(Scheme(IntegerGrid(4, 64, True), Attention.FP8))
    assert config["format"] == "mixed-precision"
    assert config["ignore"] == ["lm_head"]
    fp8 = {"num_bits": 8, "type": "float", "symmetric": True}
    assert config["config_groups"] == {
        "group_0": {
            "targets": [r"re:.*self_attn\.(q|k|v|o)_proj$"],
            "format": "float-quantized",
            "weights": fp8 | {"strategy": "block", "block_structure": [128, 128], "dynamic": False},
            "input_activations": fp8 | {"strategy": "group", "group_size": 128, "dynamic": True},
            "output_activations": None,
        },
        "group_1": integer_group([r"re:.*\.experts\.\d+\.w[123]$"], 64),
    }


def test_names_and_shapes_of_fp8_attention() -> None:
    assert compressed_tensors.fp8_tensors("a.q_proj", 300, 256, (128, 128)) == [
        TensorSpec("a.q_proj.weight", "F8_E4M3", (300, 256)),
        TensorSpec("a.q_proj.weight_scale", "F32", (3, 2)),
    ]


def scheme_of(config: QuantizationConfig, name: str) -> str | None:
    """vLLM's rule: ignored names first, then the first target that matches. "8 float" for FP8."""
    if any(match_name(name, entry) for entry in config.ignore):
        return None
    for group in config.config_groups.values():
        if any(match_name(name, target) for target in group.targets):
            return f"{group.weights.num_bits} {group.weights.type}"
    return None


@pytest.mark.parametrize(
    ("attention", "stored"), [(Attention.BF16, None), (Attention.FP8, "8 float"), (Attention.INT4, "4 int")]
)
@pytest.mark.parametrize("group_size", [64, WHOLE_ROW])
def test_what_the_package_finds_for_each_module(attention: Attention, stored: str | None, group_size: int) -> None:
    scheme = Scheme(IntegerGrid(4, group_size, True), attention, (6, 61), meta={"quantizer": ["a"]})
    raw = compressed_tensors.quantization_config(scheme)
    assert raw["meta"] == {"quantizer": ["a"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = QuantizationConfig.model_validate(raw)
    for name in EXPERT_NAMES:
        assert scheme_of(config, name) == "4 int"
        assert scheme_of(config, name.replace("layers.1.", "layers.60.")) == "4 int"
        assert scheme_of(config, name.replace("layers.1.", "layers.6.")) is None
        assert scheme_of(config, name.replace("layers.1.", "layers.61.")) is None
    for projection in "qkvo":
        assert scheme_of(config, f"model.layers.61.self_attn.{projection}_proj") == stored
    for name in ("lm_head", "model.layers.1.mlp.gate", "model.layers.1.block_sparse_moe.gate", "model.embed_tokens"):
        assert scheme_of(config, name) is None


def test_transformers_accepts_the_configuration() -> None:
    raw = compressed_tensors.quantization_config(Scheme(IntegerGrid(8, 32, True), Attention.FP8, meta={"a": 1}))
    read = CompressedTensorsConfig.from_dict(raw)
    assert read.is_quantization_compressed
    assert read.has_fp8_modules


def test_refusals_name_option_and_remedy() -> None:
    for grid, message in (
        (IntegerGrid(6, 128, True), "--bits 6: compressed-tensors is loaded with 4 or 8 bits only"),
        (IntegerGrid(4, 256, True), "--group-size 256: runtimes have kernels for 32, 64, 128 or -1"),
        (IntegerGrid(4, 128, False), "--asymmetric: vLLM's kernels for processors refuse"),
    ):
        with pytest.raises(BadInput, match=re.escape(message)):
            compressed_tensors.check(grid, Attention.BF16)
    for attention in Attention:
        compressed_tensors.check(IntegerGrid(8, WHOLE_ROW, True), attention)
    with pytest.raises(BadInput, match=r"tensor x\.w3: its 36 columns are not a multiple of 8.*awq"):
        compressed_tensors.check_shape("x.w3", 64, 36, IntegerGrid(4, WHOLE_ROW, True))
    with pytest.raises(BadInput, match=r"tensor x\.w3: its 192 columns .* group size 128; give --group-size 32, 64"):
        compressed_tensors.check_shape("x.w3", 64, 192, IntegerGrid(4, 128, True))
    compressed_tensors.check_shape("x.w3", 33, 128, IntegerGrid(4, 128, True))


def test_formats_are_found_by_name() -> None:
    assert list(FORMATS) == ["awq", "gptq", "compressed-tensors"]
    assert FORMATS["compressed-tensors"] is compressed_tensors

"""GPTQ files against compressed-tensors' and llama.cpp's unpackers, and what runtimes look up in the configuration."""

import re

import numpy as np
import pytest
from compressed_tensors.compressors.pack_quantized import unpack_from_int32
from integer_matrices import (
    COLUMNS,
    GROUP_SIZES,
    assert_same,
    decompressed,
    packed_tensors,
    random_matrix,
    read_by_llama_cpp,
    single_codes,
)
from transformers.utils.quantization_config import GPTQConfig

from quantkit.errors import BadInput
from quantkit.formats import compressed_tensors, gptq
from quantkit.formats.scheme import Attention, Scheme
from quantkit.quantize.integers import WHOLE_ROW, IntegerGrid, Quantized

PREFIX = "model.layers.0.block_sparse_moe.experts.3.w2"


def read_with_unpacker(quantized: Quantized, grid: IntegerGrid) -> np.ndarray:
    """The weights [N, K] by the format's own formula, (q - z) * s with z stored as z - 1, groups taken from g_idx.

    The package's unpacker subtracts half of the levels from codes and zeros alike.
    """
    tensors = packed_tensors(gptq, PREFIX, quantized, grid)
    qweight, qzeros, scales, g_idx = (tensors[f"{PREFIX}.{name}"] for name in ("qweight", "qzeros", "scales", "g_idx"))
    rows, columns = quantized.codes.shape
    codes = unpack_from_int32(qweight, grid.bits, (columns, rows), packed_dim=0)
    zeros = unpack_from_int32(qzeros, grid.bits, tuple(scales.shape), packed_dim=1)
    weights = (codes.float() - (zeros.float() + 1)[g_idx]) * scales.float()[g_idx]
    return weights.T.numpy()


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", [4, 8])
def test_unpacker_reads_the_weights_that_compressed_tensors_has(bits: int, group_size: int) -> None:
    grid = IntegerGrid(bits, group_size, True)
    quantized = random_matrix(grid)
    weights = read_with_unpacker(quantized, grid)
    np.testing.assert_array_equal(weights, quantized.dequantized())
    other = packed_tensors(compressed_tensors, PREFIX, quantized, grid)
    assert weights.tobytes() == decompressed(PREFIX, other, bits, group_size, symmetric=True).tobytes()
    assert_same(gptq.unpack(gptq.pack(quantized, grid), grid), quantized)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_position_of_a_word(bits: int) -> None:
    grid = IntegerGrid(bits, 32, True)
    quantized = single_codes(grid)
    np.testing.assert_array_equal(read_with_unpacker(quantized, grid), quantized.dequantized())
    assert_same(gptq.unpack(gptq.pack(quantized, grid), grid), quantized)


def test_words_of_the_layout() -> None:
    codes = np.repeat(np.arange(8, dtype=np.uint8)[None], 8, axis=0).repeat(4, axis=0).reshape(8, 32)
    quantized = Quantized(codes, np.ones((8, 1), np.float32), np.full((8, 1), 8, np.uint8))
    arrays = gptq.pack(quantized, IntegerGrid(4, 32, True))
    assert {hex(word) for word in arrays["qweight"].view(np.uint32).reshape(-1)} == {"0x76543210"}
    assert hex(arrays["qzeros"].view(np.uint32)[0, 0]) == "0x77777777"
    wide = Quantized(codes, quantized.scales, np.full((8, 1), 128, np.uint8))
    assert hex(gptq.pack(wide, IntegerGrid(8, 32, True))["qzeros"].view(np.uint32)[0, 0]) == "0x7f7f7f7f"


def test_groups_in_another_order_are_not_read() -> None:
    grid = IntegerGrid(4, 32, True)
    arrays = gptq.pack(random_matrix(grid), grid)
    arrays["g_idx"] = arrays["g_idx"][::-1]
    with pytest.raises(ValueError, match="g_idx"):
        gptq.unpack(arrays, grid)


@pytest.mark.full
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", [4, 8])
def test_llama_cpp_reads_the_weights(bits: int, group_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = IntegerGrid(bits, group_size, True)
    quantized = random_matrix(grid)
    tensors = packed_tensors(gptq, PREFIX, quantized, grid)
    read = read_by_llama_cpp(gptq.quantization_config(Scheme(grid)), tensors, monkeypatch)
    np.testing.assert_array_equal(read[f"{PREFIX}.weight"], quantized.dequantized())


def test_configuration_of_rounding() -> None:
    assert gptq.quantization_config(Scheme(IntegerGrid(4, 128, True))) == {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "dynamic": {"-:.*self_attn.*": {}, "-:.*gate$": {}, "-:lm_head": {}},
    }


def test_configuration_of_the_method() -> None:
    method = {"static_groups": True, "true_sequential": True, "damp_percent": 0.1}
    config = gptq.quantization_config(Scheme(IntegerGrid(4, 128, True), meta={**method, "quantizer": ["quantkit:0.1"]}))
    assert {key: config[key] for key in method} == method
    assert config["meta"] == {"quantizer": ["quantkit:0.1"]}


@pytest.mark.parametrize("attention", [Attention.BF16, Attention.INT4])
def test_which_modules_runtimes_leave_unquantized(attention: Attention) -> None:
    config = gptq.quantization_config(Scheme(IntegerGrid(8, 64, True), attention, (6, 61)))

    def skipped(module: str) -> bool:
        """vLLM's rule."""
        return any(re.match(pattern.removeprefix("-:"), module) for pattern in config["dynamic"])

    for moe in ("mlp", "block_sparse_moe"):
        layers = (1, 6, 16, 60, 61)
        assert [layer for layer in layers if skipped(f"model.layers.{layer}.{moe}.experts")] == [6, 61]
        assert all(skipped(f"model.layers.{layer}.{moe}.gate") for layer in layers)
    assert skipped("lm_head")
    for projection in ("qkv_proj", "q_proj", "o_proj"):
        assert skipped(f"model.layers.1.self_attn.{projection}") is (attention is Attention.BF16)


def test_transformers_accepts_the_configuration() -> None:
    read = GPTQConfig.from_dict(gptq.quantization_config(Scheme(IntegerGrid(8, WHOLE_ROW, True), meta={"a": 1})))
    assert (read.bits, read.group_size, read.sym, read.desc_act) == (8, -1, True, False)
    assert (read.format, read.meta) == ("gptq", {"a": 1})


def test_refusals_name_option_and_remedy() -> None:
    for grid, attention, message in (
        (IntegerGrid(3, 128, True), Attention.BF16, "--bits 3: gptq is loaded with 4 or 8 bits only"),
        (IntegerGrid(4, 16, True), Attention.BF16, "--group-size 16: runtimes have kernels for 32, 64, 128 or -1"),
        (IntegerGrid(4, 128, False), Attention.BF16, "--asymmetric: vLLM loads gptq with symmetric grids only; give"),
        (IntegerGrid(4, 128, True), Attention.FP8, "--attention fp8: gptq cannot describe FP8 layers; give --att"),
    ):
        with pytest.raises(BadInput, match=re.escape(message)):
            gptq.check(grid, attention)
    gptq.check(IntegerGrid(8, 32, True), Attention.INT4)
    with pytest.raises(BadInput, match=r"tensor x\.w2: its 36 rows are not a multiple of 8.*compressed-tensors"):
        gptq.check_shape("x.w2", 36, 128, IntegerGrid(4, 128, True))
    with pytest.raises(BadInput, match=r"tensor x\.w2: its 36 columns are not a multiple of 8.*awq"):
        gptq.check_shape("x.w2", 64, 36, IntegerGrid(4, WHOLE_ROW, True))
    with pytest.raises(
        BadInput, match=r"tensor x\.w2: its 384 columns .* group size 256; give --group-size 32, 64, 12"
    ):
        gptq.check_shape("x.w2", 64, COLUMNS, IntegerGrid(4, 256, True))
    gptq.check_shape("x.w2", 36, 36, IntegerGrid(8, WHOLE_ROW, True))

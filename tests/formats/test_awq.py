"""AWQ files against compressed-tensors' reader of AutoAWQ files, and what runtimes look up in the configuration."""

import re

import numpy as np
import pytest
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from integer_matrices import GROUP_SIZES, assert_same, decompressed, packed_tensors, random_matrix, single_codes
from transformers.utils.quantization_config import AwqConfig

from quantkit.errors import BadInput
from quantkit.formats import awq
from quantkit.formats.scheme import Attention, Scheme
from quantkit.quantize.integers import WHOLE_ROW, IntegerGrid, Quantized

PREFIX = "model.layers.0.block_sparse_moe.experts.3.w1"


def read_by_converter(quantized: Quantized, grid: IntegerGrid) -> np.ndarray:
    """The weights as compressed-tensors converts and dequantizes them."""
    tensors = packed_tensors(awq, PREFIX, quantized, grid)
    config = awq.quantization_config(Scheme(grid))
    converted = AutoAWQConverter.from_autoawq_config(config).process(tensors)
    return decompressed(PREFIX, converted, 4, grid.group_size, symmetric=False)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_converter_reads_the_weights(group_size: int, symmetric: bool) -> None:
    grid = IntegerGrid(4, group_size, symmetric)
    quantized = random_matrix(grid)
    np.testing.assert_array_equal(read_by_converter(quantized, grid), quantized.dequantized())
    assert_same(awq.unpack(awq.pack(quantized, grid), grid), quantized)


def test_every_position_of_a_word() -> None:
    grid = IntegerGrid(4, 32, True)
    quantized = single_codes(grid)
    np.testing.assert_array_equal(read_by_converter(quantized, grid), quantized.dequantized())
    assert_same(awq.unpack(awq.pack(quantized, grid), grid), quantized)


def test_every_position_of_a_word_of_zeros() -> None:
    grid = IntegerGrid(4, 32, False)
    zeros = np.eye(16, dtype=np.uint8) * np.uint8(15)
    quantized = Quantized(np.zeros((16, 16 * 32), np.uint8), np.ones((16, 16), np.float32), zeros)
    np.testing.assert_array_equal(read_by_converter(quantized, grid), quantized.dequantized())


def test_words_of_the_layout() -> None:
    # Rows 0 to 7 of the matrix in nibbles 0 4 1 5 2 6 3 7, which reads 7 5 3 1 6 4 2 0 from the highest nibble down.
    codes = np.repeat(np.arange(8, dtype=np.uint8)[:, None], 32, axis=1)
    quantized = Quantized(codes, np.ones((8, 1), np.float32), np.full((8, 1), 8, np.uint8))
    arrays = awq.pack(quantized, IntegerGrid(4, 32, True))
    assert {hex(word) for word in arrays["qweight"].view(np.uint32).reshape(-1)} == {"0x75316420"}
    assert hex(arrays["qzeros"].view(np.uint32)[0, 0]) == "0x88888888"


def test_configuration() -> None:
    assert awq.quantization_config(Scheme(IntegerGrid(4, 128, True))) == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["self_attn", "block_sparse_moe.gate", ".mlp.gate", "lm_head"],
    }


@pytest.mark.parametrize("attention", [Attention.BF16, Attention.INT4])
def test_which_modules_runtimes_leave_unquantized(attention: Attention) -> None:
    config = awq.quantization_config(Scheme(IntegerGrid(4, 64, True), attention, (6, 61), meta={"quantizer": ["a"]}))
    assert config["meta"] == {"quantizer": ["a"]}
    # vLLM's rule: an entry anywhere in its own name of the module. SGLang has the checkpoint's names.
    kept = [
        name
        for moe in ("mlp", "block_sparse_moe")
        for layer in (1, 6, 60, 61)
        for name in (f"model.layers.{layer}.{moe}.gate", f"model.layers.{layer}.{moe}.experts")
        if any(entry in name for entry in config["modules_to_not_convert"])
    ]
    assert [name for name in kept if name.endswith("experts")] == [
        f"model.layers.{layer}.{moe}.experts" for moe in ("mlp", "block_sparse_moe") for layer in (6, 61)
    ]
    assert len([name for name in kept if name.endswith("gate")]) == 8
    attention_kept = any(entry in "model.layers.1.self_attn.q_proj" for entry in config["modules_to_not_convert"])
    assert attention_kept is (attention is Attention.BF16)


def test_transformers_accepts_the_configuration() -> None:
    read = AwqConfig.from_dict(awq.quantization_config(Scheme(IntegerGrid(4, WHOLE_ROW, False), meta={"a": 1})))
    assert (read.bits, read.group_size, read.zero_point, read.format) == (4, -1, True, "gemm")


def test_refusals_name_option_and_remedy() -> None:
    for grid, attention, message in (
        (IntegerGrid(8, 128, True), Attention.BF16, "--bits 8: awq is loaded with 4 bits only"),
        (IntegerGrid(4, 48, True), Attention.BF16, "--group-size 48: runtimes have kernels for 32, 64, 128 or -1"),
        (IntegerGrid(4, WHOLE_ROW, True), Attention.BF16, "--group-size -1: vLLM cannot load awq files without groups"),
        (IntegerGrid(4, 128, True), Attention.FP8, "--attention fp8: awq cannot describe FP8 layers; give --att"),
    ):
        with pytest.raises(BadInput, match=re.escape(message)):
            awq.check(grid, attention)
    with pytest.raises(BadInput, match=r"tensor x\.w1: its 36 rows are not a multiple of 8.*compressed-tensors"):
        awq.check_shape("x.w1", 36, 128, IntegerGrid(4, 128, True))
    with pytest.raises(BadInput, match=r"tensor x\.w1: its 192 columns .* 128; give --group-size 32, 64 or -1"):
        awq.check_shape("x.w1", 64, 192, IntegerGrid(4, 128, True))
    awq.check_shape("x.w1", 64, 36, IntegerGrid(4, WHOLE_ROW, True))
    awq.check(IntegerGrid(4, 128, False), Attention.INT4)


@pytest.mark.parametrize(
    ("scale", "code", "zero"),
    [
        (np.float32(1 + 2**-8), 0, 8),  # not exact in bfloat16
        (np.float32(2.0**-25), 0, 8),  # below float16
        (np.float32(2.0**16), 0, 8),  # above float16
        (np.float32(0), 0, 8),
        (np.float32(-1), 0, 8),
        (np.float32(np.nan), 0, 8),
        (np.float32(1), 16, 8),
        (np.float32(1), 0, 7),  # of a symmetric grid
    ],
)
def test_what_would_change_a_value_is_not_packed(scale: np.float32, code: int, zero: int) -> None:
    quantized = random_matrix(IntegerGrid(4, 32, True))
    quantized.scales[3, 2], quantized.codes[5, 7], quantized.zeros[0, 1] = scale, code, zero
    with pytest.raises(ValueError, match=r"a scale|a code|a zero"):
        awq.pack(quantized, IntegerGrid(4, 32, True))

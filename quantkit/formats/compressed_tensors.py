"""compressed-tensors, "pack-quantized": weights [N, K] as int32 [N, K / 8], eight columns of the matrix in a word.

Read from vllm-project/compressed-tensors (compressors/pack_quantized) and from vLLM's reader. Weights are
`(stored - 2^(bits - 1)) * scale`: the code of a symmetric grid is what is stored. The one format of the three that
can hold attention in the source's FP8 blocks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import BadInput
from quantkit.formats import limits
from quantkit.formats.safetensors import TensorSpec
from quantkit.formats.scheme import Attention, Scheme
from quantkit.formats.words import codes_per_word, pack_columns, unpack_columns
from quantkit.quantize.integers import WHOLE_ROW, IntegerGrid, Quantized

NAME = "compressed-tensors"
BITS = (4, 8)
# Expert 0 of a layer is .mlp.experts.0.w1 in vLLM and .block_sparse_moe.experts.0.w1 in the checkpoint: both match.
EXPERTS = r"re:.*\.experts\.\d+\.w[123]$"
ATTENTION = r"re:.*self_attn\.(q|k|v|o)_proj$"
# Modules that stay as they are, whatever the layer.
IGNORED = {
    Attention.BF16: ("lm_head", "re:.*self_attn.*", "re:.*gate$"),
    Attention.FP8: ("lm_head",),
    Attention.INT4: ("lm_head", "re:.*gate$"),
}
# Names of an FP8 matrix's tensors in the source and here; weights keep their bytes.
FP8_SUFFIXES = {"weight": "weight", "weight_scale_inv": "weight_scale"}


def check(grid: IntegerGrid, attention: Attention) -> None:
    """Raise BadInput naming option and remedy when the format cannot hold the grid; it holds every attention."""
    limits.check_grid(NAME, grid, BITS)
    if not grid.symmetric:
        raise BadInput(
            "--asymmetric: vLLM's kernels for processors refuse compressed-tensors with zero points; "
            "give --symmetric or the format awq"
        )


def check_shape(name: str, rows: int, columns: int, grid: IntegerGrid) -> None:
    """Raise BadInput naming the tensor when a matrix [N, K] does not fill whole words or groups."""
    limits.check_groups(name, columns, grid)
    limits.check_words(name, "columns", columns, codes_per_word(grid.bits), "choose awq, which packs along the rows")


def tensors(prefix: str, rows: int, columns: int, grid: IntegerGrid) -> list[TensorSpec]:
    """The tensors that the linear weight `prefix` [N, K] becomes."""
    return [
        TensorSpec(f"{prefix}.weight_packed", "I32", (rows, columns // codes_per_word(grid.bits))),
        TensorSpec(f"{prefix}.weight_scale", "BF16", (rows, grid.groups(columns))),
        TensorSpec(f"{prefix}.weight_shape", "I64", (2,)),
    ]


def fp8_tensors(prefix: str, rows: int, columns: int, block: tuple[int, int]) -> list[TensorSpec]:
    """The tensors of a weight [N, K] that stays in FP8 blocks: its bytes and its block scales, under FP8_SUFFIXES."""
    blocks = (math.ceil(rows / block[0]), math.ceil(columns / block[1]))
    return [
        TensorSpec(f"{prefix}.weight", "F8_E4M3", (rows, columns)),
        TensorSpec(f"{prefix}.weight_scale", "F32", blocks),
    ]


def pack(quantized: Quantized, grid: IntegerGrid) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of `tensors` by suffix: weight_packed int32 [N, K / 8], weight_scale [N, K / g] as the bits of
    bfloat16, weight_shape int64 [2].

    Exact; raises ValueError where it could not be.
    """
    limits.check_quantized(quantized, grid)
    return {
        "weight_packed": pack_columns(quantized.codes, grid.bits),
        "weight_scale": limits.bfloat16_bits(quantized.scales),
        "weight_shape": np.array(quantized.codes.shape, np.int64),
    }


def unpack(arrays: dict[str, npt.NDArray[Any]], grid: IntegerGrid) -> Quantized:
    """Undo `pack`."""
    scales = limits.from_bfloat16_bits(arrays["weight_scale"])
    codes = unpack_columns(arrays["weight_packed"], grid.bits)
    return Quantized(codes, scales, np.full(scales.shape, grid.middle, np.uint8))


def quantization_config(scheme: Scheme) -> dict[str, Any]:
    """Value of config.json's "quantization_config" as vLLM, SGLang and transformers read it."""
    fp8 = scheme.attention is Attention.FP8
    targets = [ATTENTION, EXPERTS] if scheme.attention is Attention.INT4 else [EXPERTS]
    groups = ([_fp8_group(scheme.block)] if fp8 else []) + [_integer_group(scheme.grid, targets)]
    config: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision" if fp8 else "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "ignore": _kept_modules(scheme),
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
    }
    return config | ({"meta": scheme.meta} if scheme.meta else {})


def _kept_modules(scheme: Scheme) -> list[str]:
    # vLLM calls the experts' parent mlp, the checkpoint and SGLang call it block_sparse_moe.
    names = [rf"re:.*layers\.{layer}\.(mlp|block_sparse_moe)\..*" for layer in scheme.kept_layers]
    return [*IGNORED[scheme.attention], *names]


def _integer_group(grid: IntegerGrid, targets: list[str]) -> dict[str, Any]:
    whole_row = grid.group_size == WHOLE_ROW
    return {
        "targets": targets,
        "format": "pack-quantized",
        "weights": {
            "num_bits": grid.bits,
            "type": "int",
            "symmetric": True,
            "strategy": "channel" if whole_row else "group",
            "group_size": None if whole_row else grid.group_size,
            "dynamic": False,
            "actorder": None,
            "observer": "minmax",
        },
        "input_activations": None,
        "output_activations": None,
    }


def _fp8_group(block: tuple[int, int]) -> dict[str, Any]:
    fp8 = {"num_bits": 8, "type": "float", "symmetric": True}
    return {
        "targets": [ATTENTION],
        "format": "float-quantized",
        "weights": fp8 | {"strategy": "block", "block_structure": list(block), "dynamic": False},
        "input_activations": fp8 | {"strategy": "group", "group_size": block[1], "dynamic": True},
        "output_activations": None,
    }

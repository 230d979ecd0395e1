"""GPTQ in the first version of its layout: weights [N, K] as int32 [K / 8, N], eight columns of the matrix in a word.

Read from ModelCloud/GPTQModel and from vLLM's reader (auto_gptq.py). Weights are `(code - zero) * scale`; what is
stored of a zero is `zero - 1`. vLLM loads symmetric files only, and groups in the order of the columns only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import BadInput
from quantkit.formats import limits
from quantkit.formats.safetensors import TensorSpec
from quantkit.formats.scheme import Attention, Scheme
from quantkit.formats.words import codes_per_word, pack_columns, unpack_columns
from quantkit.quantize.integers import IntegerGrid, Quantized

NAME = "gptq"
BITS = (4, 8)
# How the codes were found, which readers of the format expect beside the layout. Rounding has none of these.
METHOD_KEYS = ("static_groups", "true_sequential", "damp_percent")


def check(grid: IntegerGrid, attention: Attention) -> None:
    """Raise BadInput naming option and remedy when the format cannot hold the grid or the attention."""
    limits.check_grid(NAME, grid, BITS)
    if not grid.symmetric:
        raise BadInput("--asymmetric: vLLM loads gptq with symmetric grids only; give --symmetric or the format awq")
    if attention is Attention.FP8:
        raise BadInput(
            "--attention fp8: gptq cannot describe FP8 layers; give --attention bf16 or the format compressed-tensors"
        )


def check_shape(name: str, rows: int, columns: int, grid: IntegerGrid) -> None:
    """Raise BadInput naming the tensor when a matrix [N, K] does not fill whole words or groups."""
    limits.check_groups(name, columns, grid)
    per_word = codes_per_word(grid.bits)
    limits.check_words(name, "rows", rows, per_word, "choose compressed-tensors, which packs along the columns")
    limits.check_words(name, "columns", columns, per_word, "choose awq, which packs along the rows")


def tensors(prefix: str, rows: int, columns: int, grid: IntegerGrid) -> list[TensorSpec]:
    """The tensors that the linear weight `prefix` [N, K] becomes."""
    groups, per_word = grid.groups(columns), codes_per_word(grid.bits)
    return [
        TensorSpec(f"{prefix}.qweight", "I32", (columns // per_word, rows)),
        TensorSpec(f"{prefix}.qzeros", "I32", (groups, rows // per_word)),
        TensorSpec(f"{prefix}.scales", "F16", (groups, rows)),
        # vLLM does without, GPTQModel and transformers do not.
        TensorSpec(f"{prefix}.g_idx", "I32", (columns,)),
    ]


def pack(quantized: Quantized, grid: IntegerGrid) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of `tensors` by suffix: qweight int32 [K / 8, N], qzeros int32 [K / g, N / 8], scales float16
    [K / g, N], g_idx int32 [K], the group of each column.

    Exact; raises ValueError where it could not be.
    """
    limits.check_quantized(quantized, grid)
    stored_zeros = (np.ascontiguousarray(quantized.zeros.T) - np.uint8(1)) & np.uint8(grid.levels - 1)
    return {
        "qweight": np.ascontiguousarray(pack_columns(quantized.codes, grid.bits).T),
        "qzeros": pack_columns(stored_zeros, grid.bits),
        "scales": np.ascontiguousarray(quantized.scales.T.astype(np.float16)),
        "g_idx": _group_of_columns(quantized.codes.shape[1], grid),
    }


def unpack(arrays: dict[str, npt.NDArray[Any]], grid: IntegerGrid) -> Quantized:
    """Undo `pack`. Raises ValueError for groups that are not in the order of the columns."""
    codes = unpack_columns(arrays["qweight"].T, grid.bits)
    if not np.array_equal(arrays["g_idx"], _group_of_columns(codes.shape[1], grid)):
        raise ValueError("g_idx: groups are not in the order of the columns")
    zeros = (unpack_columns(arrays["qzeros"], grid.bits) + np.uint8(1)) & np.uint8(grid.levels - 1)
    scales = np.ascontiguousarray(arrays["scales"].T.astype(np.float32))
    return Quantized(codes, scales, np.ascontiguousarray(zeros.T))


def quantization_config(scheme: Scheme) -> dict[str, Any]:
    """Value of config.json's "quantization_config" as vLLM, GPTQModel and transformers read it.

    Entries of `scheme.meta` under METHOD_KEYS become keys of their own.
    """
    config: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": scheme.grid.bits,
        "group_size": scheme.grid.group_size,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "checkpoint_format": "gptq",
    }
    config |= {key: scheme.meta[key] for key in METHOD_KEYS if key in scheme.meta}
    config["dynamic"] = {f"-:{pattern}": {} for pattern in _kept_modules(scheme)}
    meta = {key: value for key, value in scheme.meta.items() if key not in METHOD_KEYS}
    return config | ({"meta": meta} if meta else {})


def _group_of_columns(columns: int, grid: IntegerGrid) -> npt.NDArray[np.int32]:
    return np.arange(columns, dtype=np.int32) // np.int32(grid.columns(columns))


def _kept_modules(scheme: Scheme) -> list[str]:
    # Regular expressions, matched from the start of a module's name. vLLM calls the experts' parent mlp, the
    # checkpoint and GPTQModel call it block_sparse_moe.
    patterns = [] if scheme.attention is Attention.INT4 else [".*self_attn.*"]
    patterns += [".*gate$", "lm_head"]
    return patterns + [rf".*layers\.{layer}\.(mlp|block_sparse_moe)\.experts.*" for layer in scheme.kept_layers]

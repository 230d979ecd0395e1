"""AWQ in AutoAWQ's GEMM layout: weights [N, K] as int32 [K, N / 8], eight rows of the matrix in a word.

Read from casper-hansen/AutoAWQ (awq/modules/linear/gemm.py) and from vLLM's reader (auto_awq.py). Weights are
`(code - zero) * scale`; codes and zeros are stored as they are, zeros always: vLLM's kernels refuse files without.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import BadInput
from quantkit.formats import limits
from quantkit.formats.safetensors import TensorSpec
from quantkit.formats.scheme import Attention, Scheme
from quantkit.formats.words import pack_rows, unpack_rows
from quantkit.quantize.integers import WHOLE_ROW, IntegerGrid, Quantized

NAME = "awq"
BITS = (4,)
PER_WORD = 8
# Nibble i of a word holds row ORDER[i] of its eight. Readers that go the other way use the inverse, 0 4 1 5 2 6 3 7.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def check(grid: IntegerGrid, attention: Attention) -> None:
    """Raise BadInput naming option and remedy when the format cannot hold the grid or the attention."""
    limits.check_grid(NAME, grid, BITS)
    if grid.group_size == WHOLE_ROW:
        raise BadInput(f"--group-size {WHOLE_ROW}: vLLM cannot load {NAME} files without groups; give 32, 64 or 128")
    if attention is Attention.FP8:
        raise BadInput(
            "--attention fp8: awq cannot describe FP8 layers; give --attention bf16 or the format compressed-tensors"
        )


def check_shape(name: str, rows: int, columns: int, grid: IntegerGrid) -> None:
    """Raise BadInput naming the tensor when a matrix [N, K] does not fill whole words or groups."""
    limits.check_words(name, "rows", rows, PER_WORD, "choose compressed-tensors, which packs along the columns")
    limits.check_groups(name, columns, grid)


def tensors(prefix: str, rows: int, columns: int, grid: IntegerGrid) -> list[TensorSpec]:
    """The tensors that the linear weight `prefix` [N, K] becomes."""
    groups = grid.groups(columns)
    return [
        TensorSpec(f"{prefix}.qweight", "I32", (columns, rows // PER_WORD)),
        TensorSpec(f"{prefix}.qzeros", "I32", (groups, rows // PER_WORD)),
        TensorSpec(f"{prefix}.scales", "F16", (groups, rows)),
    ]


def pack(quantized: Quantized, grid: IntegerGrid) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of `tensors` by suffix: qweight int32 [K, N / 8], qzeros int32 [K / g, N / 8], scales float16.

    Exact; raises ValueError where it could not be.
    """
    limits.check_quantized(quantized, grid)
    return {
        "qweight": np.ascontiguousarray(pack_rows(quantized.codes, ORDER).T),
        "qzeros": np.ascontiguousarray(pack_rows(quantized.zeros, ORDER).T),
        "scales": np.ascontiguousarray(quantized.scales.T.astype(np.float16)),
    }


def unpack(arrays: dict[str, npt.NDArray[Any]], grid: IntegerGrid) -> Quantized:
    """Undo `pack`."""
    return Quantized(
        codes=unpack_rows(arrays["qweight"].T, ORDER),
        scales=np.ascontiguousarray(arrays["scales"].T.astype(np.float32)),
        zeros=unpack_rows(arrays["qzeros"].T, ORDER),
    )


def quantization_config(scheme: Scheme) -> dict[str, Any]:
    """Value of config.json's "quantization_config" as vLLM, SGLang and transformers read it."""
    config: dict[str, Any] = {
        "quant_method": "awq",
        "bits": scheme.grid.bits,
        "group_size": scheme.grid.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": _kept_modules(scheme),
    }
    return config | ({"meta": scheme.meta} if scheme.meta else {})


def _kept_modules(scheme: Scheme) -> list[str]:
    # Runtimes look for an entry anywhere in a module's name: without its last dot layers.6. would keep 60 to 69 too.
    # vLLM calls the experts' parent mlp, the checkpoint and SGLang call it block_sparse_moe.
    names = [] if scheme.attention is Attention.INT4 else ["self_attn"]
    names += ["block_sparse_moe.gate", ".mlp.gate", "lm_head"]
    for layer in scheme.kept_layers:
        names += [f"layers.{layer}.mlp.", f"layers.{layer}.block_sparse_moe."]
    return names

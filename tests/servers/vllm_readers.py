"""A program for vLLM's environment: what vLLM's own readers find in packed tensors, and what registering leaves.

    python vllm_readers.py PACKED.safetensors FOUND.safetensors

PACKED has tensors CASE/FORMAT-BITS/SUFFIX. FOUND gets CASE/units, the values with all scales 1, and CASE/values in
bfloat16, both [N, K] as float32; and how often each hook of quantkit's plugin is there after two registrations.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from vllm.model_executor.kernels import linear as kernels
from vllm.model_executor.layers.fused_moe.oracle.int_wna16 import (
    _unpack_and_dequant_int4_awq,
    _unpack_and_dequant_int4_gptq,
)
from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32
from vllm.platforms import PlatformEnum
from vllm.scalar_type import scalar_types

import quantkit.vllm_plugin


def read(kind: str, parts: dict[str, Tensor], scales: Tensor) -> Tensor:
    """Return the weight [N, K] with these `scales` [K / g, N] as vLLM dequantizes it in `scales`' type."""
    if kind == "awq-4":
        weight = _unpack_and_dequant_int4_awq(
            parts["qweight"][None],
            scales[None],
            parts["qzeros"][None],
            transpose_output=True,
            output_dtype=scales.dtype,
        )
        return weight[0]
    words = parts["qweight"] if "qweight" in parts else parts["weight_packed"].t()
    if kind.endswith("-4"):
        weight = _unpack_and_dequant_int4_gptq(
            words[None], scales[None], None, transpose_output=True, output_dtype=scales.dtype
        )
        return weight[0]
    codes = unpack_quantized_values_into_int32(words, scalar_types.uint8b128, 0).t() - scalar_types.uint8b128.bias
    return codes.to(scales.dtype) * scales.repeat_interleave(codes.shape[1] // scales.shape[0], 0).t()


def registered_twice() -> dict[str, Tensor]:
    quantkit.vllm_plugin.register()
    quantkit.vllm_plugin.register()
    tables = {
        "mixed": kernels._POSSIBLE_KERNELS,
        "fp8": kernels._POSSIBLE_FP8_BLOCK_KERNELS,
        "fp8-weights": kernels._POSSIBLE_WFP8A16_KERNELS,
    }
    counts = {
        name: sum(kernel.__module__.startswith("quantkit.") for kernel in table[PlatformEnum.CPU])
        for name, table in tables.items()
    }
    return {f"registered/{name}": torch.tensor(count) for name, count in counts.items()}


def main(packed: str, found: str) -> None:
    cases: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in load_file(packed).items():
        case, kind, suffix = name.split("/")
        cases.setdefault((case, kind), {})[suffix] = tensor
    results = registered_twice()
    for (case, kind), parts in cases.items():
        scales = (parts["scales"] if "scales" in parts else parts["weight_scale"].t()).to(torch.bfloat16)
        results[f"{case}/units"] = read(kind, parts, torch.ones_like(scales)).float().contiguous()
        results[f"{case}/values"] = read(kind, parts, scales).float().contiguous()
    save_file(results, found)


if __name__ == "__main__":
    main(*sys.argv[1:])

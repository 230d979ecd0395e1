"""FP8 weights in blocks: linear layers of FP8 and compressed-tensors checkpoints, experts of FP8 checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.kernels import linear as kernels
from vllm.model_executor.kernels.linear.base import MMLinearKernel
from vllm.model_executor.kernels.linear.scaled_mm.BlockScaledMMLinearKernel import FP8BlockParams
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend
from vllm.model_executor.layers.quantization import fp8
from vllm.platforms import PlatformEnum

from quantkit.vllm_plugin.hand_over import hand_over_experts, hand_over_linear


def dequantized(weight: Tensor, scale: Tensor, block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return FP8 `weight` [N, K] times `scale` [ceil(N / rows), ceil(K / columns)], one per `block` (rows, columns)."""
    rows, columns = weight.shape
    spread = scale.float().repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return (weight.float() * spread).to(dtype)


class DequantizedFp8BlockKernel(MMLinearKernel):
    """Takes the place of vLLM's FP8 block kernels, whose CPU forms need AMX."""

    def __init__(self, config: Any, layer_param_names: list[str] | None = None) -> None:
        super().__init__(config)

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        return True, None

    @classmethod
    def can_implement(cls, config: Any) -> tuple[bool, str | None]:
        shape = config.weight_quant_key.scale.group_shape
        return min(shape) > 1, "its weights are not scaled in blocks"

    def _get_layer_params(self, layer: Any, **kwargs: Any) -> FP8BlockParams:
        return FP8BlockParams.from_layer(layer)

    def process_weights_after_loading(self, layer: Any) -> None:
        params = self._get_layer_params(layer)
        block = tuple(layer.weight_block_size)
        hand_over_linear(layer, dequantized(params.weight.data, params.block_scale.data, block, layer.orig_dtype))

    def apply_weights(self, layer: Any, x: Tensor, bias: Tensor | None = None, **kwargs: Any) -> Tensor:
        raise AssertionError("the layer was handed over when its weights were loaded")


def convert_experts(method: Any, layer: Any) -> None:
    """Stand in for Fp8MoEMethod.process_weights_after_loading."""
    block = tuple(method.moe_block_shape)
    w13, w2 = (
        [
            getattr(layer, f"{name}_weight").data,
            getattr(layer, f"{name}_{method.weight_scale_name}").data,
        ]
        for name in ("w13", "w2")
    )
    hand_over_experts(
        layer,
        (dequantized(weight, scale, block, layer.orig_dtype) for weight, scale in zip(*w13, strict=True)),
        (dequantized(weight, scale, block, layer.orig_dtype) for weight, scale in zip(*w2, strict=True)),
    )


def hook() -> None:
    """Put the kernel before vLLM's own, and the conversion in the place of the experts' own."""
    kernels._POSSIBLE_FP8_BLOCK_KERNELS[PlatformEnum.CPU].insert(0, DequantizedFp8BlockKernel)
    # Where compressed-tensors looks: without FP8 hardware it takes its FP8 layers for W8A16, which no CPU kernel does.
    kernels._POSSIBLE_WFP8A16_KERNELS[PlatformEnum.CPU].insert(0, DequantizedFp8BlockKernel)
    # The experts choose a kernel before they are loaded; any will do, for the layer is handed over.
    fp8.select_fp8_moe_backend = lambda **_: (Fp8MoeBackend.TRITON, CPUUnquantizedExperts)
    fp8.Fp8MoEMethod.process_weights_after_loading = convert_experts

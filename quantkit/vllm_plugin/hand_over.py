"""From a quantized layer of vLLM to one of vLLM's unquantized layers, once its weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.linear import UnquantizedLinearMethod


def hand_over_linear(layer: Any, weight: Tensor) -> None:
    """Make `layer` an unquantized one with `weight` [N, K]; its other parameters but the bias are freed."""
    for name in [name for name, _ in layer.named_parameters(recurse=False) if name != "bias"]:
        delattr(layer, name)
    layer.register_parameter("weight", Parameter(weight, requires_grad=False))
    layer.quant_method = UnquantizedLinearMethod()
    layer.quant_method.process_weights_after_loading(layer)


def hand_over_experts(layer: Any, w13: Iterator[Tensor], w2: Iterator[Tensor]) -> None:
    """Make the routed experts `layer` unquantized with the matrices [2 I, H] of `w13` and [H, I] of `w2`.

    Both give one matrix per expert, so that only one expert at a time is there in more than its final form. The layer's
    own parameters are freed.
    """
    weights = {"w13_weight": _stacked(w13, layer.local_num_experts), "w2_weight": _stacked(w2, layer.local_num_experts)}
    for name in [name for name, _ in layer.named_parameters(recurse=False) if name.startswith(("w13_", "w2_"))]:
        delattr(layer, name)
    for name, weight in weights.items():
        layer.register_parameter(name, Parameter(weight, requires_grad=False))
    layer.quant_method = UnquantizedFusedMoEMethod(layer.moe_config)
    layer.quant_method.process_weights_after_loading(layer)


def _stacked(matrices: Iterator[Tensor], count: int) -> Tensor:
    """Return `count` matrices [N, K] as one tensor [count, N, K]."""
    first = next(matrices)
    stacked = torch.empty(count, *first.shape, dtype=first.dtype)
    stacked[0] = first
    for expert, matrix in enumerate(matrices, start=1):
        stacked[expert] = matrix
    return stacked

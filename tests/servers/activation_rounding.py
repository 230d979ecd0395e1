"""llama.cpp's rounding of activations, for transformers: the largest part of what the two disagree about.

On a CPU llama.cpp rounds the input of every product to the partner type of its weight: 8-bit blocks for quantized
weights, 16-bit floats for 16-bit weights. Weights stored as F32 (the router) multiply unrounded input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Rounding = Callable[[Tensor], Tensor]


def q8_0(values: Tensor) -> Tensor:
    """Round to 8 bits with an F16 scale per 32 values."""
    blocks = values.reshape(-1, 32)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    steps = torch.where(scale > 0, blocks / scale, 0).round()
    return (steps * scale.half().float()).reshape(values.shape)


def q8_k(values: Tensor) -> Tensor:
    """Round to 8 bits with an F32 scale per 256 values; the largest magnitude becomes -127 whatever its sign."""
    blocks = values.reshape(-1, 256)
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    inverse = torch.where(largest != 0, -127 / largest, 0)
    steps = (blocks * inverse).round().clamp(max=127)
    return torch.where(inverse != 0, steps / inverse, 0).reshape(values.shape)


ROUNDINGS: dict[str, Rounding] = {
    "F32": lambda values: values,
    "BF16": lambda values: values.bfloat16().float(),
    "Q8_0": q8_0,
    "Q4_K": q8_k,
    "Q6_K": q8_k,
}


class RoundedActivations(TorchFunctionMode):
    """While active, every linear product of `model` rounds its input as the type of its weight asks.

    `types` has the GGUF type of each parameter by name. Experts have to run one by one, as slices of the stacked
    parameter, and are set to.
    """

    def __init__(self, model: nn.Module, types: dict[str, str]) -> None:
        super().__init__()
        model.set_experts_implementation("eager")
        weights = {name: parameter for name, parameter in model.named_parameters() if name in types}
        # A slice of a stacked parameter lies in the parameter's storage.
        self.roundings = {_storage(weight): ROUNDINGS[types[name]] for name, weight in weights.items()}

    def __torch_function__(
        self, function: Any, kinds: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        if function is nn.functional.linear:
            values, weight, *rest = arguments
            arguments = (self.roundings[_storage(weight)](values), weight, *rest)
        return function(*arguments, **(options or {}))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

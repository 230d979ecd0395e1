"""Block-wise FP8: float8_e4m3fn values with one float32 scale per 128 x 128 block."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
E4M3_MAXIMUM = 448.0


def _blocks(weight: Tensor) -> Tensor:
    """View [..., R, C] as [..., R / 128, 128, C / 128, 128]."""
    return weight.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return e4m3 values [..., R, C] and their multipliers `weight_scale_inv` [..., R / 128, C / 128]."""
    blocks = _blocks(weight.float())
    scale = blocks.abs().amax(dim=(-3, -1)).clamp_min(1e-12) / E4M3_MAXIMUM
    values = (blocks / scale[..., :, None, :, None]).clamp(-E4M3_MAXIMUM, E4M3_MAXIMUM).to(torch.float8_e4m3fn)
    return values.reshape(weight.shape), scale


def dequantize(values: Tensor, scale: Tensor) -> Tensor:
    """Return float32 weights [..., R, C] from values [..., R, C] and multipliers [..., R / 128, C / 128]."""
    return (_blocks(values.float()) * scale[..., :, None, :, None]).reshape(values.shape)


def fake_quantize(weight: Tensor) -> Tensor:
    """Round through FP8 in the forward pass; the gradient passes straight through."""
    with torch.no_grad():
        error = dequantize(*quantize(weight)) - weight
    return weight + error

"""Operations on rows of activations, on whatever device they are: compiled loops on the CPU, torch elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from quantkit.forward import kernels

# oneDNN compiles a kernel for every number of rows it meets, which takes as long as the product itself. So products
# get their rows in multiples of this: few numbers, each compiled once.
ROW_STEP = 64


def round_up(rows: int) -> int:
    """The next multiple of ROW_STEP."""
    return -(-rows // ROW_STEP) * ROW_STEP


def as_numpy(tensor: torch.Tensor) -> Any:
    """The memory of a CPU tensor as numpy: bfloat16 as its bits (uint16)."""
    return (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


# Up to so many rows, oneDNN spends more on rearranging the weights for a product than on transposing its result.
FEW_ROWS = 512


def product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return `rows` [M, K] times the transposed `weight` [N, K]: [M, N], contiguous."""
    if rows.device.type == "cpu" and rows.dtype is torch.bfloat16 and len(rows) <= FEW_ROWS:
        return torch.mm(weight, rows.T).T.contiguous()
    return torch.nn.functional.linear(rows, weight)


def sum_of_squares(rows: torch.Tensor) -> torch.Tensor:
    """Return sum(x^2) over `rows` [M, K] per column, float32 [K]."""
    if rows.device.type != "cpu":
        return rows.float().square().sum(0)
    values = as_numpy(rows)
    sums = np.zeros(rows.shape[1], np.float32)
    kernels.sum_of_squares(values, sums)
    return torch.from_numpy(sums)


def block_extremes(rows: torch.Tensor, block: int) -> torch.Tensor:
    """Return, per block of `block` columns of `rows` [M, K], the largest |x| and the largest |sum of a row's block|.

    float32 [2, K / block]; K must be a multiple of `block`.
    """
    if rows.device.type != "cpu":
        parts = rows.float().view(len(rows), -1, block)
        return torch.stack([parts.abs().amax((0, 2)), parts.sum(2).abs().amax(0)])
    values = as_numpy(rows)
    extremes = np.zeros((2, rows.shape[1] // block), np.float32)
    kernels.block_extremes(values, block, extremes[0], extremes[1])
    return torch.from_numpy(extremes)


def add_weighted_rows(out: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, values: torch.Tensor) -> None:
    """out[index[m]] += weights[m] * values[m] for float32 `out` [T, H]; no index occurs twice."""
    if out.device.type != "cpu":
        out.index_add_(0, index, values.float() * weights[:, None])
        return
    kernels.add_weighted_rows(as_numpy(values), index.numpy(), weights.numpy(), out.numpy())


def finite_rows(rows: torch.Tensor) -> torch.Tensor:
    """Whether all values of a row are finite, bool [M]."""
    return torch.isfinite(rows).all(1)


def all_finite(rows: torch.Tensor) -> bool:
    """Whether `rows` holds no NaN and no infinity."""
    if rows.device.type != "cpu" or not rows.is_contiguous():
        return bool(torch.isfinite(rows).all())
    values = as_numpy(rows)
    return bool(kernels.all_finite(values.reshape(-1)))


def rms_norm(rows: torch.Tensor, weight: torch.Tensor, epsilon: float, dtype: torch.dtype) -> torch.Tensor:
    """Return weight * x / sqrt(mean(x^2) + epsilon) per row of contiguous `rows` [..., K] on the CPU, in `dtype`.

    Computed in float32 and rounded once; `weight` is float32 [K].
    """
    out = torch.empty(rows.shape, dtype=dtype)
    source, target = as_numpy(rows.flatten(0, -2)), as_numpy(out.view(-1, rows.shape[-1]))
    kernels.rms_norm(source, weight.numpy(), np.float32(epsilon), target)
    return out

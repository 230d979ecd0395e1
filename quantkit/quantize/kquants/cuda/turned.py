"""Rows of a matrix in device memory, turned so that rows lie side by side: float32 [K, R].

Neighbouring threads have neighbouring rows then, and read and write neighbouring bytes. The card holds the float32 of
the few matrices that are in flight, and its cache most of it; the machine's own memory never does.
"""

from __future__ import annotations

import torch


def turn(values: torch.Tensor) -> torch.Tensor:
    """Return float `values` [R, K] of any width as float32 [K, R]; exact."""
    return values.t().contiguous().float()


def turn_fp8(codes: torch.Tensor, scale: torch.Tensor, block: tuple[int, int], first_row: int) -> torch.Tensor:
    """Return e4m3 `codes` uint8 [R, K] times the `scale` of their blocks as float32 [K, R].

    `scale` float32 [ceil(N / block[0]), ceil(K / block[1])] is that of the whole matrix, whose rows from `first_row`
    on the codes are. NaN codes and scales give NaN: the caller checks.
    """
    rows, columns = codes.shape
    of_row = torch.arange(first_row, first_row + rows, device=codes.device) // block[0]
    of_column = torch.arange(columns, device=codes.device) // block[1]
    weights = codes.t().contiguous().view(torch.float8_e4m3fn).float()
    return weights.mul_(scale.t()[:, of_row][of_column])

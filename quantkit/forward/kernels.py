"""Loops over rows that the CPU spends its time in besides matrix products, compiled; float32, or bfloat16 as its bits.

Each has one job, reads its input once, and runs on one thread: workers run several at a time.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quantkit.bits import U32, bits_from_float, load, store

# Sums may be reordered and fused, so that they become vector instructions. NaN and infinities are still honoured.
REORDER = {"reassoc", "contract", "nsz"}
COLUMNS = 256  # so many sums stay in registers and the nearest cache


@numba.njit(nogil=True, cache=True, fastmath=REORDER)
def sum_of_squares(rows: Any, sums: Any) -> None:
    """sums[k] += sum over m of rows[m, k]^2."""
    count, width = rows.shape
    for begin in range(0, width, COLUMNS):
        end = min(begin + COLUMNS, width)
        target = sums[begin:end]
        for index in range(count):
            row = rows[index, begin:end]
            for column in range(end - begin):
                value = load(row[column])
                target[column] += value * value


@numba.njit(nogil=True, cache=True, fastmath=REORDER)
def block_extremes(rows: Any, block: int, largest: Any, largest_sum: Any) -> None:
    """Raise largest[b] to the largest |x|, largest_sum[b] to the largest |sum of a row's block b|."""
    count, width = rows.shape
    for index in range(count):
        for number in range(width // block):
            part = rows[index, number * block : (number + 1) * block]
            total = np.float32(0)
            peak = np.float32(0)
            for column in range(block):
                value = load(part[column])
                total += value
                peak = max(peak, abs(value))
            largest[number] = max(largest[number], peak)
            largest_sum[number] = max(largest_sum[number], abs(total))


@numba.njit(nogil=True, cache=True)
def add_weighted_rows(values: Any, index: Any, weights: Any, out: Any) -> None:
    """out[index[m]] += weights[m] * values[m]."""
    count, width = values.shape
    for number in range(count):
        weight = weights[number]
        source, target = values[number], out[index[number]]
        for column in range(width):
            target[column] += weight * load(source[column])


@numba.njit(nogil=True, cache=True, fastmath=REORDER)
def rms_norm(rows: Any, weight: Any, epsilon: Any, out: Any) -> None:
    """out[m] = weight * rows[m] / sqrt(mean(rows[m]^2) + epsilon)."""
    count, width = rows.shape
    for index in range(count):
        source, target = rows[index], out[index]
        total = np.float32(0)
        for column in range(width):
            value = load(source[column])
            total += value * value
        factor = np.float32(1) / np.sqrt(total / np.float32(width) + epsilon)
        for column in range(width):
            store(target, column, weight[column] * (load(source[column]) * factor))


@numba.njit(nogil=True, cache=True)
def all_finite(values: Any) -> Any:
    """Whether none of the values [N] is NaN or infinite."""
    largest = U32(0)
    for index in range(values.shape[0]):
        largest = max(largest, bits_from_float(load(values[index])) & U32(0x7FFFFFFF))
    return largest < U32(0x7F800000)

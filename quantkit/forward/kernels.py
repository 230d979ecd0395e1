"""Loops over rows that the CPU spends its time in besides matrix products, compiled; bfloat16 as its bits.

Each has one job, reads its input once, and runs on one thread: workers run several at a time.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quantkit.bits import U32, bits_from_float, narrow, widen

# Sums may be reordered and fused, so that they become vector instructions. NaN and infinities are still honoured.
REORDER = {"reassoc", "contract", "nsz"}
COLUMNS = 256  # so many sums stay in registers and the nearest cache


@numba.njit(inline="always")
def _same(value: Any) -> Any:
    return value


def _sum_of_squares(load: Any) -> Any:
    @numba.njit(nogil=True, cache=True, fastmath=REORDER)
    def kernel(rows: Any, sums: Any) -> None:
        count, width = rows.shape
        for begin in range(0, width, COLUMNS):
            end = min(begin + COLUMNS, width)
            target = sums[begin:end]
            for index in range(count):
                row = rows[index, begin:end]
                for column in range(end - begin):
                    value = load(row[column])
                    target[column] += value * value

    return kernel


def _block_extremes(load: Any) -> Any:
    @numba.njit(nogil=True, cache=True, fastmath=REORDER)
    def kernel(rows: Any, block: int, largest: Any, largest_sum: Any) -> None:
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

    return kernel


def _add_weighted_rows(load: Any) -> Any:
    @numba.njit(nogil=True, cache=True)
    def kernel(values: Any, index: Any, weights: Any, out: Any) -> None:
        count, width = values.shape
        for number in range(count):
            weight = weights[number]
            source, target = values[number], out[index[number]]
            for column in range(width):
                target[column] += weight * load(source[column])

    return kernel


def _rms_norm(load: Any, store: Any) -> Any:
    @numba.njit(nogil=True, cache=True, fastmath=REORDER)
    def kernel(rows: Any, weight: Any, epsilon: Any, out: Any) -> None:
        count, width = rows.shape
        for index in range(count):
            source, target = rows[index], out[index]
            total = np.float32(0)
            for column in range(width):
                value = load(source[column])
                total += value * value
            factor = np.float32(1) / np.sqrt(total / np.float32(width) + epsilon)
            for column in range(width):
                target[column] = store(weight[column] * (load(source[column]) * factor))

    return kernel


@numba.njit(nogil=True, cache=True)
def _finite_bfloat16(values: Any) -> Any:
    largest = U32(0)
    for index in range(values.shape[0]):
        largest = max(largest, U32(values[index]) & U32(0x7FFF))
    return largest < U32(0x7F80)


@numba.njit(nogil=True, cache=True)
def _finite_float32(values: Any) -> Any:
    largest = U32(0)
    for index in range(values.shape[0]):
        largest = max(largest, bits_from_float(values[index]) & U32(0x7FFFFFFF))
    return largest < U32(0x7F800000)


# Whether none of the values [N] is NaN or infinite.
all_finite = {np.dtype(np.uint16): _finite_bfloat16, np.dtype(np.float32): _finite_float32}

# By the dtypes of input and output.
rms_norm = {
    (np.dtype(np.float32), np.dtype(np.float32)): _rms_norm(_same, _same),
    (np.dtype(np.float32), np.dtype(np.uint16)): _rms_norm(_same, narrow),
    (np.dtype(np.uint16), np.dtype(np.uint16)): _rms_norm(widen, narrow),
}

# By the dtype of the rows: bfloat16 bits (uint16) or float32.
sum_of_squares = {np.dtype(np.uint16): _sum_of_squares(widen), np.dtype(np.float32): _sum_of_squares(_same)}
block_extremes = {np.dtype(np.uint16): _block_extremes(widen), np.dtype(np.float32): _block_extremes(_same)}
add_weighted_rows = {np.dtype(np.uint16): _add_weighted_rows(widen), np.dtype(np.float32): _add_weighted_rows(_same)}

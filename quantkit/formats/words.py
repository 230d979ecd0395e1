"""Codes of 4 or 8 bits in int32 words, as AWQ, GPTQ and compressed-tensors store them.

A word's first code is in its low bits. Words run along the columns of a row (8 or 4 neighbouring columns a word) or
along the rows (8 or 4 rows below each other a word). Both ways need a little-endian machine.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from quantkit.arrays import Bytes

Words = npt.NDArray[np.int32]

U32, U64 = np.uint32, np.uint64
# Which bits stay when the low halves of bytes, of pairs and of quadruples move together.
NIBBLES, BYTES, PAIRS, HALF = (
    U64(mask) for mask in (0x0F0F0F0F0F0F0F0F, 0x00FF00FF00FF00FF, 0x0000FFFF0000FFFF, 0xFFFFFFFF)
)


def codes_per_word(bits: int) -> int:
    """Codes in one int32."""
    return 32 // bits


def pack_columns(codes: Bytes, bits: int) -> Words:
    """Return `codes` uint8 [N, K] packed along the columns, int32 [N, K * bits / 32]; of 8 bits the same memory."""
    codes = np.ascontiguousarray(codes)
    if bits == 8:
        return codes.view(np.int32)
    words = np.empty((codes.shape[0], codes.shape[1] // 8), np.uint32)
    _narrow_columns(codes.view(np.uint64).reshape(-1), words.reshape(-1))
    return words.view(np.int32)


def unpack_columns(words: Words, bits: int) -> Bytes:
    """Return the codes uint8 [N, K] of `words` int32 [N, K * bits / 32]; undoes `pack_columns`."""
    words = np.ascontiguousarray(words)
    if bits == 8:
        return words.view(np.uint8)
    codes = np.empty((words.shape[0], words.shape[1] * 8), np.uint8)
    _widen_columns(words.view(np.uint32).reshape(-1), codes.view(np.uint64).reshape(-1))
    return codes


def pack_rows(codes: Bytes, order: tuple[int, ...]) -> Words:
    """Return 4-bit `codes` uint8 [N, K] packed along the rows, int32 [N / 8, K].

    Nibble i of a word holds row `order[i]` of its eight.
    """
    words = np.empty((codes.shape[0] // 8, codes.shape[1]), np.uint32)
    _narrow_rows(np.ascontiguousarray(codes), np.array(order), words)
    return words.view(np.int32)


def unpack_rows(words: Words, order: tuple[int, ...]) -> Bytes:
    """Return the 4-bit codes uint8 [N, K] of `words` int32 [N / 8, K]; undoes `pack_rows`."""
    codes = np.empty((words.shape[0] * 8, words.shape[1]), np.uint8)
    _widen_rows(np.ascontiguousarray(words).view(np.uint32), np.array(order), codes)
    return codes


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _narrow_columns(eights: Any, words: Any) -> None:
    # Eight codes at a time: the halves of neighbours move together, then of pairs, then of quadruples.
    for index in range(eights.shape[0]):
        bits = eights[index]
        bits = (bits | (bits >> U64(4))) & BYTES
        bits = (bits | (bits >> U64(8))) & PAIRS
        words[index] = U32((bits | (bits >> U64(16))) & HALF)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _widen_columns(words: Any, eights: Any) -> None:
    for index in range(words.shape[0]):
        bits = U64(words[index])
        bits = (bits | (bits << U64(16))) & PAIRS
        bits = (bits | (bits << U64(8))) & BYTES
        eights[index] = (bits | (bits << U64(4))) & NIBBLES


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _narrow_rows(codes: Any, order: Any, words: Any) -> None:
    for block in range(words.shape[0]):
        target = words[block]
        target[:] = 0
        for nibble in range(8):
            row, shift = codes[block * 8 + order[nibble]], U32(4 * nibble)
            for column in range(target.shape[0]):
                target[column] |= U32(row[column]) << shift


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _widen_rows(words: Any, order: Any, codes: Any) -> None:
    for block in range(words.shape[0]):
        source = words[block]
        for nibble in range(8):
            row, shift = codes[block * 8 + order[nibble]], U32(4 * nibble)
            for column in range(source.shape[0]):
                row[column] = (source[column] >> shift) & U32(15)

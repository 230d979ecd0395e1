"""Small integers cut into groups of bits that lie somewhere in the bytes of a block."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from quantkit.arrays import Bytes


@dataclass(frozen=True)
class BitField:
    """Where `width` bits, from bit `shift` upwards, of some of a block's integers lie.

    `bytes` and `integers` are (first, behind the last). The bytes are cut into runs of `run`: byte r of a run holds the
    bits of the run's integers r, r + run, r + 2 run and so on, one beside the other from bit `low` upwards.
    """

    bytes: tuple[int, int]
    integers: tuple[int, int]
    run: int
    width: int
    low: int = 0
    shift: int = 0

    @property
    def per_byte(self) -> int:
        """Integers that share a byte."""
        return (self.integers[1] - self.integers[0]) // (self.bytes[1] - self.bytes[0])


def put(integers: Bytes, fields: tuple[BitField, ...], packed: Bytes) -> None:
    """Write `integers` [B, n] into the blocks `packed` [B, bytes per block], whose bits there must still be 0."""
    _put(integers, _table(fields), packed)


def take(packed: Bytes, fields: tuple[BitField, ...], count: int) -> Bytes:
    """Read `count` integers per block [B, count] out of the blocks `packed` [B, bytes per block]."""
    integers = np.zeros((len(packed), count), np.uint8)
    _take(packed, _table(fields), integers)
    return integers


@cache
def _table(fields: tuple[BitField, ...]) -> npt.NDArray[np.int64]:
    """The fields as rows of numbers, in the order in which the compiled loops unpack them."""
    return np.array(
        [
            (
                field.bytes[0],
                field.integers[0],
                (field.bytes[1] - field.bytes[0]) // field.run,
                field.run,
                field.per_byte,
                field.width,
                field.low,
                field.shift,
            )
            for field in fields
        ],
        np.int64,
    )


# The innermost loops work on single bytes side by side, which compilers turn into vector instructions: every result is
# narrowed to uint8 at once, or the loops would compute in 64 bits.


@numba.njit(nogil=True, cache=True)
def _put(integers: Any, fields: Any, packed: Any) -> None:
    for block in range(integers.shape[0]):
        for number in range(fields.shape[0]):
            byte, first, runs, run, per_byte, width, low, shift = fields[number]
            mask, down = np.uint8((1 << width) - 1), np.uint8(shift)
            for _ in range(runs):
                target = packed[block, byte : byte + run]
                for place in range(per_byte):
                    source, up = integers[block, first : first + run], np.uint8(low + place * width)
                    for index in range(run):
                        target[index] |= np.uint8(np.uint8(np.uint8(source[index] >> down) & mask) << up)
                    first += run
                byte += run


@numba.njit(nogil=True, cache=True)
def _take(packed: Any, fields: Any, integers: Any) -> None:
    for block in range(integers.shape[0]):
        for number in range(fields.shape[0]):
            byte, first, runs, run, per_byte, width, low, shift = fields[number]
            mask, up = np.uint8((1 << width) - 1), np.uint8(shift)
            for _ in range(runs):
                source = packed[block, byte : byte + run]
                for place in range(per_byte):
                    target, down = integers[block, first : first + run], np.uint8(low + place * width)
                    for index in range(run):
                        target[index] |= np.uint8(np.uint8(np.uint8(source[index] >> down) & mask) << up)
                    first += run
                byte += run

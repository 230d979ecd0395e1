"""Small integers cut into groups of bits that lie somewhere in the bytes of a block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    for field in fields:
        part = (integers[:, slice(*field.integers)] >> np.uint8(field.shift)) & _mask(field)
        part = part.reshape(-1, field.per_byte, field.run)
        merged = part[:, 0] << _bit(field, 0)
        for place in range(1, field.per_byte):
            merged |= part[:, place] << _bit(field, place)
        target = packed[:, slice(*field.bytes)]
        target |= merged.reshape(target.shape)


def take(packed: Bytes, fields: tuple[BitField, ...], count: int) -> Bytes:
    """Read `count` integers per block [B, count] out of the blocks `packed` [B, bytes per block]."""
    integers = np.zeros((len(packed), count), np.uint8)
    for field in fields:
        source = packed[:, slice(*field.bytes)].reshape(-1, field.run)
        part = np.empty((len(source), field.per_byte, field.run), np.uint8)
        for place in range(field.per_byte):
            part[:, place] = ((source >> _bit(field, place)) & _mask(field)) << np.uint8(field.shift)
        target = integers[:, slice(*field.integers)]
        target |= part.reshape(target.shape)
    return integers


def _bit(field: BitField, place: int) -> np.uint8:
    """Lowest bit, within its byte, of the integer at `place` among those that share it."""
    return np.uint8(field.low + place * field.width)


def _mask(field: BitField) -> np.uint8:
    return np.uint8((1 << field.width) - 1)

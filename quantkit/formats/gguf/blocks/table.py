"""ggml's block types as data: what the codes stand for, and which bits of a block hold what.

Source: ggml-common.h for the records and ggml-quants.c (dequantize_row_*) for the order of the bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.formats.gguf.blocks.fields import BitField

SUPER, SMALL = 256, 32


@dataclass(frozen=True)
class BlockFormat:
    """A type whose weights are `step * levels[code] - offset`, with step and offset per group of columns.

    Where there is a `scale_range`, step = d * scale code and offset = dmin * minimum code, both codes in that range; d
    and dmin belong to a block. Else step = d and offset = dmin. Without a minimum the offset is 0.
    """

    name: str
    block: int  # weights that share d and dmin
    group: int  # weights that share step and offset
    levels: tuple[float, ...]  # ascending, but for MXFP4
    scale_range: tuple[int, int] | None  # lowest and highest
    code_fields: tuple[BitField, ...]
    scale_byte: int  # where d is: float16, or one byte if scale_is_exponent
    minimum_byte: int | None = None  # where dmin is, float16
    scale_fields: tuple[BitField, ...] = ()
    minimum_fields: tuple[BitField, ...] = ()
    code_bias: int = 0  # a code is stored with this added, in 8 bits that wrap around
    scale_bias: int = 0  # and a scale code with this
    minimum_is_added: bool = False  # the file holds -dmin
    scale_is_exponent: bool = False  # the file holds e, d is 2^(e - 128)

    @property
    def has_minimum(self) -> bool:
        """Whether offsets may differ from 0."""
        return self.minimum_byte is not None

    @property
    def groups(self) -> int:
        """Groups of a block."""
        return self.block // self.group

    @property
    def has_minimum_codes(self) -> bool:
        """Whether dmin is multiplied by an integer per group."""
        return self.has_minimum and self.scale_range is not None


def _integers(low: int, high: int) -> tuple[float, ...]:
    return tuple(float(level) for level in range(low, high + 1))


def _codes(first_byte: int, block: int, run: int, width: int, shift: int = 0) -> BitField:
    """`width` bits of every code of a block, close together."""
    return BitField((first_byte, first_byte + block * width // 8), (0, block), run, width, shift=shift)


def _six_bits(first: int, last: int, low: int) -> tuple[BitField, ...]:
    """Eight integers of Q4_K or Q5_K: the first four whole in the bytes from `first` up to `last`.

    Above those are the other four's upper 2 bits; their lower 4 bits are in bytes 12 to 15, from bit `low` upwards.
    """
    return (
        BitField((first, last), (0, 4), 4, 6),
        BitField((first, last), (4, 8), 4, 2, low=6, shift=4),
        BitField((12, 16), (4, 8), 4, 4, low=low),
    )


# Denser around 0; and twice the values of E2M1, whose power of two ggml halves in turn.
NON_LINEAR = (-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0)
DOUBLED_E2M1 = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0)

_Q2_K = BlockFormat(
    name="Q2_K",
    block=SUPER,
    group=16,
    levels=_integers(0, 3),
    scale_range=(0, 15),
    code_fields=(_codes(16, SUPER, 32, 2),),
    scale_byte=80,
    minimum_byte=82,
    scale_fields=(BitField((0, 16), (0, 16), 16, 4),),
    minimum_fields=(BitField((0, 16), (0, 16), 16, 4, low=4),),
)
_Q3_K = BlockFormat(
    name="Q3_K",
    block=SUPER,
    group=16,
    levels=_integers(-4, 3),
    scale_range=(-32, 31),
    code_fields=(_codes(32, SUPER, 32, 2), _codes(0, SUPER, 32, 1, shift=2)),
    scale_byte=108,
    scale_fields=(BitField((96, 104), (0, 16), 8, 4), BitField((104, 108), (0, 16), 4, 2, shift=4)),
    scale_bias=32,
)
_Q4_K = BlockFormat(
    name="Q4_K",
    block=SUPER,
    group=32,
    levels=_integers(0, 15),
    scale_range=(0, 63),
    code_fields=(_codes(16, SUPER, 32, 4),),
    scale_byte=0,
    minimum_byte=2,
    scale_fields=_six_bits(4, 8, low=0),
    minimum_fields=_six_bits(8, 12, low=4),
)
_Q5_K = BlockFormat(
    name="Q5_K",
    block=SUPER,
    group=32,
    levels=_integers(0, 31),
    scale_range=(0, 63),
    code_fields=(_codes(48, SUPER, 32, 4), _codes(16, SUPER, 32, 1, shift=4)),
    scale_byte=0,
    minimum_byte=2,
    scale_fields=_six_bits(4, 8, low=0),
    minimum_fields=_six_bits(8, 12, low=4),
)
_Q6_K = BlockFormat(
    name="Q6_K",
    block=SUPER,
    group=16,
    levels=_integers(-32, 31),
    scale_range=(-128, 127),
    code_fields=(_codes(0, SUPER, 64, 4), _codes(128, SUPER, 32, 2, shift=4)),
    scale_byte=208,
    scale_fields=(BitField((192, 208), (0, 16), 16, 8),),
)
_IQ4_XS = BlockFormat(
    name="IQ4_XS",
    block=SUPER,
    group=32,
    levels=NON_LINEAR,
    scale_range=(-32, 31),
    code_fields=(_codes(8, SUPER, 16, 4),),
    scale_byte=0,
    scale_fields=(BitField((4, 8), (0, 8), 1, 4), BitField((2, 4), (0, 8), 1, 2, shift=4)),
    scale_bias=32,
)


def _small(
    name: str,
    levels: tuple[float, ...],
    code_fields: tuple[BitField, ...],
    minimum_byte: int | None = None,
    code_bias: int = 0,
    scale_is_exponent: bool = False,
) -> BlockFormat:
    """A type without integer scales; a minimum is added to the product in all of them."""
    return BlockFormat(
        name=name,
        block=SMALL,
        group=SMALL,
        levels=levels,
        scale_range=None,
        code_fields=code_fields,
        scale_byte=0,
        minimum_byte=minimum_byte,
        code_bias=code_bias,
        minimum_is_added=minimum_byte is not None,
        scale_is_exponent=scale_is_exponent,
    )


FORMATS: dict[str, BlockFormat] = {
    format.name: format
    for format in (
        _Q2_K,
        _Q3_K,
        _Q4_K,
        _Q5_K,
        _Q6_K,
        _IQ4_XS,
        _small("IQ4_NL", NON_LINEAR, (_codes(2, SMALL, 16, 4),)),
        _small("Q4_0", _integers(-8, 7), (_codes(2, SMALL, 16, 4),)),
        _small("Q4_1", _integers(0, 15), (_codes(4, SMALL, 16, 4),), minimum_byte=2),
        _small("Q5_0", _integers(-16, 15), (_codes(6, SMALL, 16, 4), _codes(2, SMALL, 1, 1, shift=4))),
        _small("Q5_1", _integers(0, 31), (_codes(8, SMALL, 16, 4), _codes(4, SMALL, 1, 1, shift=4)), minimum_byte=2),
        _small("Q8_0", _integers(-128, 127), (_codes(2, SMALL, 32, 8),), code_bias=128),
        _small("MXFP4", DOUBLED_E2M1, (_codes(1, SMALL, 16, 4),), scale_is_exponent=True),
    )
}

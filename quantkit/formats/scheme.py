"""What a quantized checkpoint says about itself, in the terms that its config.json needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from quantkit.quantize.integers import IntegerGrid


class Attention(StrEnum):
    """How the attention matrices are stored: widened, in the source's FP8 blocks, or on the experts' grid."""

    BF16 = "bf16"
    FP8 = "fp8"
    INT4 = "int4"


@dataclass(frozen=True)
class Scheme:
    """The experts' grid, what the attention is stored as, and the layers whose experts stay as they are.

    `block` [rows, columns] is that of FP8 attention; `meta` is the provenance that goes into the configuration.
    """

    grid: IntegerGrid
    attention: Attention = Attention.BF16
    kept_layers: tuple[int, ...] = ()
    block: tuple[int, int] = (128, 128)
    meta: dict[str, Any] = field(default_factory=dict)

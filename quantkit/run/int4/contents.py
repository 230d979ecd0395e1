"""What an INT4 checkpoint contains: every tensor of the source, packed, widened, or as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from quantkit.checkpoint.index import Checkpoint
from quantkit.errors import BadInput
from quantkit.formats import compressed_tensors
from quantkit.formats.packed import PackedFormat
from quantkit.formats.safetensors import TensorSpec
from quantkit.formats.scheme import Attention, Scheme
from quantkit.model.spec import Kind, Model, ModelTensor
from quantkit.run.int4.settings import Method

FP8 = "F8_E4M3"
# Role of a tensor that takes up AWQ's factors, and its dtype then: None where it stays. The router is never rounded.
TAKES_FACTORS = {"ffn_norm": None, "ffn_gate_inp": "F32"}


class Fate(StrEnum):
    """What becomes of a tensor."""

    PACKED = "packed"
    WIDENED = "widened"  # FP8 times its scales, in BF16
    FP8 = "fp8"  # its bytes and its block scales
    COPIED = "copied"
    SCALED = "scaled"  # takes up the factors of AWQ


@dataclass(frozen=True)
class Piece:
    """One tensor of the source: its model tensor, its number among the stacked ones, and what becomes of it."""

    tensor: ModelTensor
    number: int
    fate: Fate

    @property
    def source(self) -> str:
        return self.tensor.sources[self.number]

    @property
    def scale(self) -> str | None:
        return self.tensor.scales[self.number]

    @property
    def prefix(self) -> str:
        """Name of the module that holds the weight."""
        return self.source.removesuffix(".weight")


def pieces(model: Model, scheme: Scheme, method: Method) -> Iterator[Piece]:
    """All tensors of the model in file order."""
    for tensor in model.tensors:
        fate = _fate(tensor, scheme, method)
        for number in range(tensor.matrices):
            yield Piece(tensor, number, Fate.COPIED if fate is Fate.WIDENED and not tensor.scales[number] else fate)


def _fate(tensor: ModelTensor, scheme: Scheme, method: Method) -> Fate:
    """What becomes of a tensor of the model: only experts, and attention where asked for, are quantized."""
    kept = tensor.layer in scheme.kept_layers
    if tensor.role.kind is Kind.EXPERT:
        return Fate.WIDENED if kept else Fate.PACKED
    if tensor.role.kind is Kind.LINEAR:
        return {Attention.BF16: Fate.WIDENED, Attention.FP8: Fate.FP8, Attention.INT4: Fate.PACKED}[scheme.attention]
    if method is Method.AWQ and tensor.role.name in TAKES_FACTORS and not kept:
        return Fate.SCALED
    return Fate.COPIED


def tensor_specs(piece: Piece, checkpoint: Checkpoint, scheme: Scheme, packed: PackedFormat) -> list[TensorSpec]:
    """The tensors that a piece becomes. Raises BadInput where its shape does not fit the format."""
    shape = piece.tensor.source_shape
    if piece.fate is Fate.PACKED:
        rows, columns = shape
        packed.check_shape(piece.source, rows, columns, scheme.grid)
        return packed.tensors(piece.prefix, rows, columns, scheme.grid)
    if piece.fate is Fate.WIDENED:
        return [TensorSpec(piece.source, "BF16", shape)]
    entry = checkpoint.tensors[piece.source]
    if piece.fate in (Fate.COPIED, Fate.SCALED):
        dtype = TAKES_FACTORS[piece.tensor.role.name] if piece.fate is Fate.SCALED else None
        return [TensorSpec(piece.source, dtype or entry.dtype, shape)]
    if entry.dtype != FP8:
        raise BadInput(
            f"{entry.path}: tensor {piece.source} is {entry.dtype}; --attention fp8 keeps the bytes of an FP8 source, "
            "give --attention bf16"
        )
    return compressed_tensors.fp8_tensors(piece.prefix, shape[0], shape[1], scheme.block)

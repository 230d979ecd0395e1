"""The unit of work: some rows of one source matrix, and the one output range that they fill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from quantkit.checkpoint.index import Checkpoint
from quantkit.formats.gguf.layout import Part
from quantkit.formats.gguf.types import row_bytes
from quantkit.model.spec import Model, ModelTensor

# An expert of M2.7 has 4.7 M weights and is one item; larger matrices are cut into pieces of at most this many, so
# that what an item holds in memory does not depend on the model.
ITEM_WEIGHTS = 8 * 2**20

# Bytes held per weight while an item is worked on: stored (<= 4), float32 (4), packed (<= 4), a cast's temporaries (8).
BYTES_PER_WEIGHT = 20


@dataclass(frozen=True, slots=True)
class Item:
    """Rows [first, last) of source tensor `source`, to be written as `type` at `offset` of part `part`.

    `matrix` is the expert's place in the stacked `tensor`, 0 where there are none. `part` is counted over all
    outputs.
    """

    number: int
    tensor: str
    matrix: int
    source: str
    scale: str | None
    first: int
    last: int
    row_length: int
    type: str
    output: int
    part: int
    offset: int

    @property
    def weights(self) -> int:
        return (self.last - self.first) * self.row_length

    @property
    def memory(self) -> int:
        """Upper bound of the bytes that working on this item holds."""
        return self.weights * BYTES_PER_WEIGHT


def plan_items(
    checkpoint: Checkpoint, model: Model, outputs: Sequence[tuple[Mapping[str, str], Sequence[Part]]]
) -> list[Item]:
    """Return the items that write every byte of tensor data exactly once, part by part in the order of the source.

    `outputs` are the types by tensor and the parts of each. Source and parts have the same order, nearly: so disks are
    read sequentially, parts are complete one after the other, and what several outputs want is read again while the
    system still has it. Item numbers follow the outputs' order and never change for one source, recipes and layout: the
    journal stores them.
    """
    items: list[Item] = []
    places = [(output, number, part) for output, (_, parts) in enumerate(outputs) for number, part in enumerate(parts)]
    for index, (output, _, part) in enumerate(places):
        types = outputs[output][0]
        for tensor in (tensor for tensor in model.tensors if tensor.gguf in part.offsets):
            for piece in _pieces(tensor, types[tensor.gguf], model.block[0]):
                matrix, source, scale, first, last, row_length, start = piece
                offset = part.offsets[tensor.gguf] + start
                items.append(
                    Item(
                        len(items),
                        tensor.gguf,
                        matrix,
                        source,
                        scale,
                        first,
                        last,
                        row_length,
                        types[tensor.gguf],
                        output,
                        index,
                        offset,
                    )
                )

    def place(item: Item) -> tuple[int, str, int, int]:
        entry = checkpoint.tensors[item.source]
        return places[item.part][1], entry.path.name, entry.offset, item.first

    return sorted(items, key=place)


def _pieces(
    tensor: ModelTensor, type_name: str, block_rows: int
) -> Iterator[tuple[int, str, str | None, int, int, int, int]]:
    """Yield (matrix, source, scale, first row, last row, row length, byte offset inside the tensor)."""
    shape = tensor.source_shape
    rows, row_length = (1, shape[0]) if len(shape) == 1 else shape
    per_row = row_bytes(type_name, row_length)
    # Whole FP8 blocks of rows, so that no scale is read twice for one row.
    step = max(ITEM_WEIGHTS // row_length // block_rows, 1) * block_rows
    for index, (source, scale) in enumerate(zip(tensor.sources, tensor.scales, strict=True)):
        for first in range(0, rows, step):
            last = min(first + step, rows)
            yield index, source, scale, first, last, row_length, (index * rows + first) * per_row

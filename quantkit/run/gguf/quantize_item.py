"""One item of a plain conversion: rows of a source tensor, by a search that looks at nothing but them."""

from __future__ import annotations

from quantkit.arrays import Bytes
from quantkit.checkpoint.index import Checkpoint
from quantkit.checkpoint.reader import Reader
from quantkit.errors import BadInput
from quantkit.quantize.kquants.rows import NotRepresentable, Rows
from quantkit.quantize.rows import quantize_rows
from quantkit.run.gguf.items import Item
from quantkit.run.gguf.plan import Plan


def quantize_item(plan: Plan, reader: Reader, item: Item) -> Bytes:
    """Read the rows of `item` and return them packed. Raises BadInput naming shard and tensor where they do not fit."""
    found = plan.outputs[item.output].importance
    importance = found.weights(item.tensor, item.matrix) if found is not None else None
    try:
        return quantize_rows(_read(plan, reader, item), item.type, importance, plan.kquants)
    except NotRepresentable as error:
        raise not_representable(plan.checkpoint, item.source, item.tensor, error) from None


def announce(plan: Plan, reader: Reader, item: Item) -> None:
    """The rows of `item` are going to be read soon."""
    reader.will_need(item.source, _rows(plan, item))


def _rows(plan: Plan, item: Item) -> tuple[int, int] | None:
    """Those of the source tensor; None for a vector, which is one row of ggml's."""
    return (item.first, item.last) if len(plan.checkpoint.tensors[item.source].shape) > 1 else None


def _read(plan: Plan, reader: Reader, item: Item) -> Rows:
    """The rows as stored where that is FP8, else as float32."""
    if reader.is_fp8(item.source):
        assert item.scale is not None
        codes, scale = reader.read_fp8(item.source, item.scale, (item.first, item.last))
        return Rows(codes=codes, scale=scale, block=reader.block, first_row=item.first)
    return Rows(reader.read_rows(item.source, item.scale, _rows(plan, item)).reshape(-1, item.row_length))


def not_representable(checkpoint: Checkpoint, source: str, tensor: str, error: NotRepresentable) -> BadInput:
    """What is said when a weight of tensor `source` does not fit the type of `tensor`."""
    path = checkpoint.tensors[source].path
    return BadInput(f"{path}: tensor {source}: {error}; choose another type for {tensor} with --tensor-type")

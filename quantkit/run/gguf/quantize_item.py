"""One item of a plain conversion: rows of a source tensor, by ggml's own search."""

from __future__ import annotations

from quantkit.arrays import Bytes
from quantkit.checkpoint.index import Checkpoint
from quantkit.checkpoint.reader import Reader
from quantkit.errors import BadInput
from quantkit.quantize.rows import NotRepresentable, quantize_rows
from quantkit.run.gguf.items import Item
from quantkit.run.gguf.plan import Plan


def quantize_item(plan: Plan, reader: Reader, item: Item) -> Bytes:
    """Read the rows of `item` and return them packed. Raises BadInput naming shard and tensor where they do not fit."""
    entry = plan.checkpoint.tensors[item.source]
    rows = (item.first, item.last) if len(entry.shape) > 1 else None
    weights = reader.read_rows(item.source, item.scale, rows).reshape(-1, item.row_length)
    found = plan.outputs[item.output].importance
    importance = found.weights(item.tensor, item.matrix) if found is not None else None
    try:
        return quantize_rows(weights, item.type, importance)
    except NotRepresentable as error:
        raise not_representable(plan.checkpoint, item.source, item.tensor, error) from None


def not_representable(checkpoint: Checkpoint, source: str, tensor: str, error: NotRepresentable) -> BadInput:
    """What is said when a weight of tensor `source` does not fit the type of `tensor`."""
    path = checkpoint.tensors[source].path
    return BadInput(f"{path}: tensor {source}: {error}; choose another type for {tensor} with --tensor-type")

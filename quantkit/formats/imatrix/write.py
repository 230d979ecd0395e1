"""llama.cpp's importance matrix as GGUF: per weight the sums of squared inputs and the rows that went into them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from quantkit.arrays import Float32
from quantkit.errors import QuantkitError
from quantkit.formats.gguf.metadata import Pair, add_pairs, array, string, uint32

GENERAL_TYPE = "imatrix"
SUMS = ".in_sum2"
COUNTS = ".counts"


@dataclass(frozen=True)
class ImatrixEntry:
    """What an importance matrix holds for one weight.

    `name` is the weight's GGUF name, `columns` its row length K, `matrices` the experts of a stacked tensor, else 1.
    """

    name: str
    columns: int
    matrices: int


def write_imatrix(
    path: Path,
    entries: Sequence[ImatrixEntry],
    load: Callable[[str], tuple[Float32, Float32]],
    *,
    datasets: Sequence[str],
    chunk_count: int,
    chunk_size: int,
    extra: Sequence[Pair] = (),
) -> None:
    """Write `entries` in the order given as the GGUF importance matrix `path`, one entry in memory at a time.

    `load(name)` returns the sums of squared inputs, float32 [matrices, columns], and the counts of rows, float32
    [matrices]: raw sums, not means. At least one dataset must be named, or llama-quantize refuses the file;
    `chunk_size` counts tokens. Raises QuantkitError naming the entry for values that are negative or not finite, and
    naming the file when it cannot be written; either way nothing is left behind.
    """
    if not datasets or not entries:
        raise ValueError("an importance matrix needs at least one dataset and one entry")
    partial = path.with_name(path.name + ".partial")
    try:
        writer = _begin(
            partial,
            entries,
            [
                string("general.type", GENERAL_TYPE),
                array("imatrix.datasets", list(datasets)),
                uint32("imatrix.chunk_count", chunk_count),
                uint32("imatrix.chunk_size", chunk_size),
                *extra,
            ],
        )
        try:
            for entry in entries:
                sums, counts = _checked(entry, *load(entry.name))
                writer.write_tensor_data(sums)
                writer.write_tensor_data(counts)
            writer.flush()
        finally:
            writer.close()
        _publish(partial, path)
    except OSError as error:
        raise QuantkitError(f"{partial}: cannot be written ({error.strerror}); mend that and repeat") from None
    finally:
        with suppress(OSError):  # of a folder that is none; the error above names it
            partial.unlink(missing_ok=True)


def _begin(path: Path, entries: Sequence[ImatrixEntry], pairs: Sequence[Pair]) -> gguf.GGUFWriter:
    """Write everything before the tensor data."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()  # of the architecture, which such a file has not
    add_pairs(writer, pairs)
    for entry in entries:
        size = entry.matrices * 4
        writer.add_tensor_info(
            entry.name + SUMS, (entry.matrices, entry.columns), np.dtype(np.float32), size * entry.columns
        )
        writer.add_tensor_info(entry.name + COUNTS, (entry.matrices, 1), np.dtype(np.float32), size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _checked(entry: ImatrixEntry, sums: Float32, counts: Float32) -> tuple[Float32, Float32]:
    expected = {"sums": (sums, (entry.matrices, entry.columns)), "counts": (counts, (entry.matrices,))}
    for what, (values, shape) in expected.items():
        if values.shape != shape or values.dtype != np.float32:
            raise ValueError(f"{entry.name}: {what} are {values.dtype} {values.shape}, expected float32 {shape}")
        # A comparison with NaN is false.
        wrong = ~(np.isfinite(values) & (values >= 0)).reshape(entry.matrices, -1).all(axis=1)
        if wrong.any():
            raise QuantkitError(
                f"importance matrix, {entry.name}: {what} of matrix {int(wrong.argmax())} are negative or not finite"
            )
    return np.ascontiguousarray(sums), np.ascontiguousarray(counts)


def _publish(partial: Path, path: Path) -> None:
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)

"""The hidden states of all tokens between two steps of a layer: in memory, or in a file when they exceed the budget."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch

from quantkit.errors import BadInput
from quantkit.forward.rows import add_weighted_rows

FILE_ROWS = 256


class HiddenStates:
    """A matrix [T, H] whose rows are read and written by index; what was not written holds anything.

    Callers on different threads must not touch the same rows.
    """

    def __init__(self, tokens: int, width: int, dtype: torch.dtype, device: torch.device, folder: Path | None) -> None:
        """Keep the matrix on `device`, or with `folder` in a nameless file there, read through a memory map."""
        self.shape = (tokens, width)
        self.dtype = dtype
        self.device = device
        self._file_map: mmap.mmap | None = None
        nbytes = tokens * width * dtype.itemsize
        if folder is not None:
            with tempfile.TemporaryFile(dir=folder) as file:
                _allocate(file.fileno(), nbytes, folder)
                memory = self._file_map = mmap.mmap(file.fileno(), nbytes)
        elif device.type == "cpu":
            memory = mmap.mmap(-1, nbytes)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                # Rows are read at random places: with small pages most of that is looking addresses up.
                memory.madvise(mmap.MADV_HUGEPAGE)
        else:
            self.tensor = torch.empty(tokens, width, dtype=dtype, device=device)
            return
        self.tensor = torch.frombuffer(memory, dtype=dtype).reshape(tokens, width)

    @staticmethod
    def nbytes(tokens: int, width: int, dtype: torch.dtype) -> int:
        """Bytes that such a matrix takes."""
        return tokens * width * dtype.itemsize

    def __enter__(self) -> HiddenStates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The map closes itself when the last tensor that looks into it is gone.
        del self.tensor
        self._file_map = None

    def read(self, index: torch.Tensor) -> torch.Tensor:
        """A copy of the rows `index` [M], [M, H] on the compute device."""
        index = index.to(self.tensor.device)
        if self._file_map is None:
            return self.tensor.index_select(0, index)
        rows = torch.empty(len(index), self.shape[1], dtype=self.dtype)
        for part in self._parts(len(index)):
            torch.index_select(self.tensor, 0, index[part], out=rows[part])
        return rows.to(self.device)

    def write(self, index: torch.Tensor, rows: torch.Tensor) -> None:
        """Replace the rows `index` [M] by `rows` [M, H]."""
        index, rows = index.to(self.tensor.device), rows.to(self.tensor.device, self.dtype)
        for part in self._parts(len(index)):
            self.tensor.index_copy_(0, index[part], rows[part])

    def add(self, index: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor) -> None:
        """Add weights[m] * rows[m] to row index[m]."""
        index, weights, rows = (tensor.to(self.tensor.device) for tensor in (index, weights, rows))
        for part in self._parts(len(index)):
            add_weighted_rows(self.tensor, index[part], weights[part], rows[part])

    def _parts(self, rows: int) -> Iterator[slice]:
        """All rows at once; of a file few at a time, whose pages leave the process's memory again.

        The system's cache and the file keep them. The system maps several pages around every row that is touched.
        """
        if self._file_map is None:
            yield slice(0, rows)
            return
        for first in range(0, rows, FILE_ROWS):
            yield slice(first, first + FILE_ROWS)
            self._file_map.madvise(mmap.MADV_DONTNEED)


def _allocate(file: int, nbytes: int, folder: Path) -> None:
    # Not only a length: writing through a map to a disk that is full would kill the process.
    try:
        os.posix_fallocate(file, 0, nbytes)
    except OSError as error:
        raise BadInput(
            f"{folder}: {nbytes:,} bytes of hidden states do not fit ({error.strerror}); free space or raise --memory"
        ) from None

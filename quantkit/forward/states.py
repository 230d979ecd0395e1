"""The hidden states of all tokens between two steps of a layer: in memory, or in a file when they exceed the budget."""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path
from types import TracebackType

import torch

from quantkit.forward.rows import add_weighted_rows


class HiddenStates:
    """A matrix [T, H] whose rows are read and written by index; what was not written holds anything.

    Callers on different threads must not touch the same rows.
    """

    def __init__(self, tokens: int, width: int, dtype: torch.dtype, device: torch.device, folder: Path | None) -> None:
        """Keep the matrix on `device`, or with `folder` in a nameless file there, read through a memory map.

        What a caller touched of the file leaves the process's memory when it calls `release`.
        """
        self.shape = (tokens, width)
        self.dtype = dtype
        self.device = device
        self._file_map: mmap.mmap | None = None
        nbytes = tokens * width * dtype.itemsize
        if folder is not None:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.truncate(nbytes)
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
        return self.tensor.index_select(0, index.to(self.tensor.device)).to(self.device)

    def write(self, index: torch.Tensor, rows: torch.Tensor) -> None:
        """Replace the rows `index` [M] by `rows` [M, H]."""
        self.tensor.index_copy_(0, index.to(self.tensor.device), rows.to(self.tensor.device, self.dtype))

    def add(self, index: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor) -> None:
        """Add weights[m] * rows[m] to row index[m]."""
        home = self.tensor.device
        add_weighted_rows(self.tensor, index.to(home), weights.to(home), rows.to(home))

    def release(self) -> None:
        """Take a file's pages out of this process's memory; the system's cache and the file keep them."""
        if self._file_map is not None:
            self._file_map.madvise(mmap.MADV_DONTNEED)

"""Reading an importance matrix: what is in it from the headers alone, values where and when they are wanted.

The file of a large model has half a GB, and one row of one expert is all that quantizing a piece of that expert
needs, so nothing but headers and counts is kept in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from quantkit.arrays import Float32
from quantkit.errors import BadInput
from quantkit.formats.imatrix.legacy import read_legacy
from quantkit.formats.imatrix.write import COUNTS, GENERAL_TYPE, SUMS, ImatrixEntry

HASH_BYTES = 2**22


@dataclass(frozen=True)
class _Stored:
    """Where an entry's sums begin, and the rows behind each of its matrices: one number per matrix, or one for all."""

    offset: int
    counts: Float32


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix on disk. Entries are in file order; the file must not change while this is in use."""

    path: Path
    entries: dict[str, ImatrixEntry]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    _stored: dict[str, _Stored] = field(repr=False)
    _stamp: tuple[int, int] = field(repr=False)
    _means: dict[str, Float32] = field(default_factory=dict, repr=False)

    def weights(self, name: str, matrix: int) -> Float32 | None:
        """Mean squared input per column, float32 [K], of one expert (0 where there are none) of the weight `name`.

        An expert without data gets the mean over all rows that the other experts saw. None when there is no entry or
        not a single row behind it. Raises BadInput for values that are negative or not finite.
        """
        stored = self._stored.get(name)
        if stored is None or not stored.counts.any():
            return None
        if matrix in self.missing(name):
            return self._mean(name)
        return np.asarray(self._sums(name, matrix) / stored.counts[matrix if len(stored.counts) > 1 else 0])

    def missing(self, name: str) -> tuple[int, ...]:
        """Experts of `name` that saw no row."""
        return tuple(int(matrix) for matrix in np.flatnonzero(self._stored[name].counts == 0))

    def stacked(self, matrices: Mapping[str, int]) -> Imatrix:
        """The same file with the rows of some entries cut into that many experts.

        Needed for `.dat` files and what llama-imatrix makes of them, which have the experts of a weight in one row.
        """
        entries = dict(self.entries)
        for name, count in matrices.items():
            entries[name] = ImatrixEntry(name, entries[name].columns // count, count)
        return replace(self, entries=entries)

    def check_values(self) -> None:
        """Read every value once; raise BadInput naming the entry when one is negative or not finite."""
        for entry in self.entries.values():
            for matrix in range(entry.matrices):
                self._sums(entry.name, matrix)

    def sha256(self) -> str:
        """Hash of the whole file."""
        digest = hashlib.sha256()
        for offset in range(0, self._stamp[0], HASH_BYTES):
            digest.update(self._read(offset, min(HASH_BYTES, self._stamp[0] - offset)))
        return digest.hexdigest()

    def _sums(self, name: str, matrix: int) -> Float32:
        nbytes = 4 * self.entries[name].columns
        raw = self._read(self._stored[name].offset + matrix * nbytes, nbytes)
        sums = np.frombuffer(raw, "<f4")
        # A comparison with NaN is false.
        if not (np.isfinite(sums) & (sums >= 0)).all():
            raise BadInput(
                f"{self.path}: entry {name}, matrix {matrix}: negative or not finite; "
                "an importance matrix holds sums of squares, make or fetch it again"
            )
        return sums

    def _mean(self, name: str) -> Float32:
        """Mean over the rows of all experts; computed once. Threads that do so at once get the same."""
        if name not in self._means:
            entry, counts = self.entries[name], self._stored[name].counts
            total = np.zeros(entry.columns)
            for matrix in np.flatnonzero(counts):
                total += self._sums(name, int(matrix))
            self._means[name] = (total / counts.sum(dtype=np.float64)).astype(np.float32)
        return self._means[name]

    def _read(self, offset: int, nbytes: int) -> bytes:
        try:
            file = os.open(self.path, os.O_RDONLY)
            try:
                if _stamp(os.fstat(file)) != self._stamp:
                    raise BadInput(f"{self.path}: was replaced during the run; repeat the command")
                return os.pread(file, nbytes, offset)
            finally:
                os.close(file)
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be read ({error.strerror})") from None


def read_imatrix(path: Path) -> Imatrix:
    """Open the importance matrix `path`, GGUF or `.dat`, as llama-imatrix and `write_imatrix` make it.

    Raises BadInput naming the file when it is missing, truncated or something else, and naming the entry when its
    counts are missing or do not fit.
    """
    try:
        stamp = _stamp(path.stat())
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        return _read_gguf(path, stamp) if is_gguf else _read_dat(path, stamp)
    except OSError as error:
        raise BadInput(f"{path}: cannot read the importance matrix ({error.strerror})") from None


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _read_dat(path: Path, stamp: tuple[int, int]) -> Imatrix:
    contents = read_legacy(path)
    entries, stored = {}, {}
    for name, (offset, values, calls) in contents.entries.items():
        entries[name] = ImatrixEntry(name, values, 1)
        # Without calls the values are means already.
        stored[name] = _Stored(offset, np.array([calls if calls > 0 else 1], np.float32))
    datasets = () if contents.dataset is None else (contents.dataset,)
    return Imatrix(path, entries, datasets, contents.chunk_count, 0, stored, stamp)


def _read_gguf(path: Path, stamp: tuple[int, int]) -> Imatrix:
    try:
        reader = gguf.GGUFReader(path)
        keys = {key: reader.fields[key].contents() for key in reader.fields if key.startswith(("imatrix.", "general."))}
    except Exception as error:
        # The reader has no error type of its own: damage surfaces as whatever numpy or an enum lookup raises.
        raise BadInput(f"{path}: not a readable GGUF ({error}); truncated or damaged, fetch it again") from None
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    names = [name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)]
    if not names or keys.get("general.type", GENERAL_TYPE) != GENERAL_TYPE:
        raise BadInput(
            f"{path}: a GGUF of {keys.get('general.architecture') or 'something else'}, not an importance matrix; "
            "give a file of llama-imatrix or quantkit imatrix"
        )
    entries, stored = {}, {}
    for name in names:
        counts = _counts(path, name, tensors)
        columns = int(tensors[name + SUMS].n_elements) // len(counts)
        entries[name] = ImatrixEntry(name, columns, len(counts))
        stored[name] = _Stored(int(tensors[name + SUMS].data_offset), counts)
    datasets = keys.get("imatrix.datasets", [])
    return Imatrix(
        path,
        entries,
        tuple(map(str, datasets)) if isinstance(datasets, list) else (),
        _number(keys.get("imatrix.chunk_count")),
        _number(keys.get("imatrix.chunk_size")),
        stored,
        stamp,
    )


def _counts(path: Path, name: str, tensors: dict[str, gguf.ReaderTensor]) -> Float32:
    """The rows behind each matrix of entry `name`, checked against the shape of its sums."""
    sums, counts = tensors[name + SUMS], tensors.get(name + COUNTS)
    if counts is None:
        raise BadInput(f"{path}: entry {name} has sums but no counts; make or fetch it again")
    if {sums.tensor_type, counts.tensor_type} != {gguf.GGMLQuantizationType.F32}:
        raise BadInput(f"{path}: entry {name} is {sums.tensor_type.name}, an importance matrix is F32")
    matrices = int(counts.n_elements)
    if matrices == 0 or int(sums.n_elements) != int(sums.shape[0]) * matrices:
        raise BadInput(f"{path}: entry {name}: sums for {sums.shape.tolist()} do not go with {matrices} counts")
    values = np.array(counts.data, np.float32).reshape(-1)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise BadInput(f"{path}: entry {name}: a count is negative or not finite; make or fetch it again")
    return np.rint(values)


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0

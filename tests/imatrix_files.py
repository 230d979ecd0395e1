"""Importance matrices that tests make up, in both forms."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantkit.checkpoint.index import open_checkpoint
from quantkit.formats.imatrix.write import ImatrixEntry, write_imatrix
from quantkit.model.tensors import build_model

Values = tuple[np.ndarray, np.ndarray]
"""Sums of squares [matrices, columns] and counts [matrices]."""

NOT_COLLECTED = ("_norm.", "token_embd.", "exp_probs_b.")


@dataclass(frozen=True)
class MadeUp:
    """A file and what is in it."""

    path: Path
    values: dict[str, Values]

    def weights(self, name: str, matrix: int) -> np.ndarray | None:
        """Mean squares of one expert as llama-quantize computes them."""
        if name not in self.values:
            return None
        sums, counts = self.values[name]
        return sums[matrix] / counts[matrix]


def shapes(checkpoint: Path) -> dict[str, tuple[int, int]]:
    """(matrices, columns) of every weight of a checkpoint that llama-imatrix collects data on."""
    found = {}
    for tensor in build_model(open_checkpoint(checkpoint)).tensors:
        if tensor.gguf != "output.weight" and not any(word in tensor.gguf for word in NOT_COLLECTED):
            found[tensor.gguf] = (tensor.shape[0] if len(tensor.shape) == 3 else 1, tensor.shape[-1])
    return found


def make_up(wanted: Mapping[str, tuple[int, int]], seed: int = 0) -> dict[str, Values]:
    """Values over some orders of magnitude, with another count for every expert."""
    random = np.random.default_rng(seed)
    values = {}
    for name, (matrices, columns) in wanted.items():
        counts = random.integers(1, 900, matrices).astype(np.float32)
        means = np.exp(random.standard_normal((matrices, columns)) * 2)
        values[name] = ((means * counts[:, None]).astype(np.float32), counts)
    return values


def write(path: Path, values: Mapping[str, Values], datasets: tuple[str, ...] = ("made-up.txt",)) -> MadeUp:
    """Write `values` in the GGUF form."""
    entries = [ImatrixEntry(name, sums.shape[1], len(counts)) for name, (sums, counts) in values.items()]
    write_imatrix(path, entries, values.__getitem__, datasets=datasets, chunk_count=7, chunk_size=512)
    return MadeUp(path, dict(values))


def for_checkpoint(path: Path, checkpoint: Path, seed: int = 0) -> MadeUp:
    """A complete importance matrix of the model in `checkpoint`."""
    return write(path, make_up(shapes(checkpoint), seed))


def write_dat(path: Path, values: Mapping[str, Values], calls: int = 3, trailer: bytes | None = None) -> Path:
    """Write `values` in the older form: means times calls, the mean 1 for experts that saw nothing."""
    raw = struct.pack("<i", len(values))
    for name, (sums, counts) in values.items():
        means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], 1).astype(np.float32)
        raw += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, means.size)
        raw += (means * np.float32(calls)).astype("<f4").tobytes()
    path.write_bytes(raw + (struct.pack("<ii", 7, 11) + b"made-up.txt" if trailer is None else trailer))
    return path

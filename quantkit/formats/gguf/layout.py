"""Where every byte of a GGUF goes, known before any weight is read.

File: header, key-value pairs, tensor infos, padding to 32, tensor data, each tensor padded to 32. A large model is
split into parts named PREFIX-%05d-of-%05d.gguf, numbered from 1, with the model's keys in the first part only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from quantkit.errors import BadInput
from quantkit.formats.gguf.metadata import Pair, add_pairs, split_pairs
from quantkit.formats.gguf.types import ggml_type, tensor_bytes

ALIGNMENT = 32


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written: its name, ggml type, and shape in numpy order (rows last)."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor without padding."""
        return tensor_bytes(self.type, self.shape)


@dataclass(frozen=True)
class Part:
    """One output file: its final path, everything before the data, and where each tensor starts."""

    path: Path
    header: bytes
    offsets: dict[str, int]
    size: int


def lay_out(
    out: Path, architecture: str, pairs: Sequence[Pair], tensors: Sequence[TensorSpec], split_max_size: int
) -> list[Part]:
    """Place `tensors` into as few parts as keep each file within `split_max_size` bytes, in the order given.

    One part keeps the name `out`; more get llama.cpp's split names. Raises BadInput naming the tensor when a single
    one does not fit.
    """
    groups = _group(architecture, pairs, tensors, split_max_size)
    parts = []
    for index, group in enumerate(groups):
        extra = split_pairs(index, len(groups), len(tensors)) if len(groups) > 1 else []
        header = _header(architecture, [*pairs, *extra], group) if index == 0 else _header(None, extra, group)
        offset = len(header)
        offsets = {}
        for tensor in group:
            offsets[tensor.name] = offset
            offset += _padded(tensor.nbytes)
        parts.append(Part(part_path(out, index, len(groups)), header, offsets, offset))
    return parts


def part_path(out: Path, index: int, parts: int) -> Path:
    """Final path of part `index` (from 0) of `parts`."""
    if parts == 1:
        return out
    prefix = out.name.removesuffix(".gguf")
    return out.with_name(f"{prefix}-{index + 1:05d}-of-{parts:05d}.gguf")


def _group(
    architecture: str, pairs: Sequence[Pair], tensors: Sequence[TensorSpec], limit: int
) -> list[list[TensorSpec]]:
    # Header sizes: measured with the split keys, whose values do not change their length.
    first = len(_header(architecture, [*pairs, *split_pairs(0, 1, 1)], []))
    other = len(_header(None, split_pairs(0, 1, 1), []))
    groups: list[list[TensorSpec]] = [[]]
    size = first + ALIGNMENT
    for tensor in tensors:
        # Info of one tensor: name with u64 length, u32 dimension count, u64 each, u32 type, u64 offset.
        needed = _padded(tensor.nbytes) + 8 + len(tensor.name.encode()) + 4 + 8 * len(tensor.shape) + 4 + 8
        if size + needed > limit and groups[-1]:
            groups.append([])
            size = other + ALIGNMENT
        if size + needed > limit:
            raise BadInput(
                f"tensor {tensor.name}: its {needed} bytes and a header do not fit into --split-max-size {limit}; "
                f"give at least {size + needed}"
            )
        groups[-1].append(tensor)
        size += needed
    return groups


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _header(architecture: str | None, pairs: Sequence[Pair], tensors: Sequence[TensorSpec]) -> bytes:
    """Everything before the tensor data, padded to the alignment, as the gguf package writes it.

    `architecture` is None for parts after the first, which carry only the split keys.
    """
    # The package writes to a named file only.
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        path = Path(folder) / "header.gguf"
        writer = gguf.GGUFWriter(path, architecture or "")
        if architecture is None:
            writer.kv_data[0].clear()
        add_pairs(writer, pairs)
        for tensor in tensors:
            # With `raw_dtype` set, the numpy dtype only says that `shape` counts weights, not bytes.
            writer.add_tensor_info(
                tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=ggml_type(tensor.type)
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        header = path.read_bytes()
    return header + b"\0" * (_padded(len(header)) - len(header))

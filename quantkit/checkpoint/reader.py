"""Byte-range reads: one expert, or some rows of a matrix, without touching the rest of its shard."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from types import TracebackType

import numpy as np

from quantkit.arrays import Bfloat16Bits, Bytes, Float32
from quantkit.checkpoint.dequant import (
    BFLOAT16_EXPONENT,
    are_finite_fp8,
    dequantize_fp8_blocks,
    dequantize_fp8_to_bfloat16,
    to_bfloat16,
    to_float32,
)
from quantkit.checkpoint.header import DTYPE_BYTES, TensorEntry
from quantkit.checkpoint.index import Checkpoint
from quantkit.errors import BadInput

FP8 = "F8_E4M3"


class Reader:
    """Reads rows of a checkpoint's tensors as float32; one instance serves many threads."""

    def __init__(self, checkpoint: Checkpoint, block: tuple[int, int]) -> None:
        self.checkpoint = checkpoint
        self.block = block
        self._scratch = threading.local()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.checkpoint.files.close_files()

    def read_rows(self, name: str, scale_name: str | None, rows: tuple[int, int] | None = None) -> Float32:
        """Return rows [first, last) of tensor `name` as float32 [R, K] (all of it, any shape, when `rows` is None).

        `scale_name` names the block scales of an FP8 tensor. Raises BadInput naming shard and tensor when a stored
        value or scale is not finite or the shard ends early.
        """
        entry = self.checkpoint.tensors[name]
        first, last = rows if rows is not None else (0, entry.shape[0] if entry.shape else 1)
        # Stored float32 is what is returned; all else is only passed through.
        raw = self._read(entry, first, last, kept=entry.dtype == "F32")
        shape = (last - first, *entry.shape[1:]) if entry.shape else ()
        if entry.dtype == FP8:
            assert scale_name is not None
            scale = self.read_scale(scale_name)
            values = dequantize_fp8_blocks(raw.reshape(shape), scale, self.block, first)
        else:
            values = to_float32(raw, entry.dtype, shape)
        self._check_finite(entry, values)
        return values

    def is_fp8(self, name: str) -> bool:
        """Whether `read_fp8` takes tensor `name`."""
        return self.checkpoint.tensors[name].dtype == FP8

    def read_fp8(self, name: str, scale_name: str, rows: tuple[int, int]) -> tuple[Bytes, Float32]:
        """Return rows [first, last) of the e4m3 matrix `name` as codes [R, K], and the whole matrix's block scales.

        The codes last until the thread's next call of this reader. Errors as `read_rows`.
        """
        entry = self.checkpoint.tensors[name]
        codes = self._read(entry, *rows).reshape(-1, *entry.shape[1:])
        scale = self.read_scale(scale_name)
        if not are_finite_fp8(codes, scale):
            self.read_rows(name, scale_name, rows)  # finds the place and says it
        return codes, scale

    def read_stored(self, name: str, rows: tuple[int, int] | None, buffer: Bytes) -> Bytes:
        """Fill `buffer` with rows [first, last) of tensor `name` as stored, unchecked; return the part that they take.

        BadInput when the shard ends early.
        """
        entry = self.checkpoint.tensors[name]
        offset, nbytes = self._range(entry, rows)
        return self._fill(entry, offset, buffer[:nbytes])

    def read_bfloat16(self, name: str, scale_name: str | None, out: Bfloat16Bits) -> None:
        """Write the whole matrix `name` [N, K] into `out` [N, K], rounded to bfloat16. Errors as `read_rows`."""
        entry = self.checkpoint.tensors[name]
        if entry.dtype == FP8:
            assert scale_name is not None
            codes = self._read(entry, 0, entry.shape[0]).reshape(entry.shape)
            finite = dequantize_fp8_to_bfloat16(codes, self.read_scale(scale_name), self.block, out)
        elif entry.dtype == "BF16":
            out[...] = self._read(entry, 0, entry.shape[0]).view(np.uint16).reshape(entry.shape)
            finite = not ((out & BFLOAT16_EXPONENT) == BFLOAT16_EXPONENT).any()
        else:
            to_bfloat16(self.read_rows(name, scale_name), out)
            return
        if not finite:
            self.read_rows(name, scale_name)  # finds the place and says it
            raise BadInput(f"{entry.path}: tensor {name}: a weight exceeds 3.39e38, the largest bfloat16 value")

    def read_bytes(self, name: str, most: int = 2**26) -> Iterator[Bytes]:
        """Yield the stored bytes of tensor `name`, unchecked, in whole rows of about `most` bytes together.

        BadInput when the shard ends early.
        """
        entry = self.checkpoint.tensors[name]
        rows = entry.shape[0] if entry.shape else 1
        step = max(1, most * rows // max(entry.nbytes, 1))
        for first in range(0, rows, step):
            yield self._read(entry, first, min(first + step, rows), kept=True)

    def read_scale(self, name: str) -> Float32:
        """Return the block scales `name` as float32 [R, C]; BadInput when one is not finite."""
        entry = self.checkpoint.tensors[name]
        scale = to_float32(self._read(entry, 0, entry.shape[0], kept=True), entry.dtype, entry.shape)
        self._check_finite(entry, scale)
        return scale

    def expect(self, names: Iterable[str | None]) -> None:
        """These tensors are going to be read, about in this order."""
        self.checkpoint.files.expect(self._entries(names))

    def release(self, names: Iterable[str | None]) -> None:
        """These tensors will not be read again."""
        self.checkpoint.files.release(self._entries(names))

    def will_need(self, name: str, rows: tuple[int, int] | None = None) -> None:
        """Rows [first, last) of tensor `name` (all of it without) are going to be read soon. Returns at once."""
        entry = self.checkpoint.tensors[name]
        offset, nbytes = self._range(entry, rows)
        self.checkpoint.files.will_need(self.checkpoint.shard_name(entry.path), offset, nbytes)

    def _entries(self, names: Iterable[str | None]) -> list[TensorEntry]:
        return [self.checkpoint.tensors[name] for name in names if name is not None]

    def _buffer(self, nbytes: int) -> Bytes:
        """Memory for stored bytes, the same again for every call of a thread: fresh pages cost as much as reading."""
        buffer: Bytes | None = getattr(self._scratch, "buffer", None)
        if buffer is None or len(buffer) < nbytes:
            buffer = self._scratch.buffer = np.empty(nbytes, np.uint8)
        return buffer[:nbytes]

    @staticmethod
    def _range(entry: TensorEntry, rows: tuple[int, int] | None) -> tuple[int, int]:
        """First byte of rows [first, last) in their shard, and how many they have."""
        if rows is None:
            return entry.offset, entry.nbytes
        per_row = entry.nbytes // entry.shape[0] if entry.shape else DTYPE_BYTES[entry.dtype]
        return entry.offset + rows[0] * per_row, (rows[1] - rows[0]) * per_row

    def _read(self, entry: TensorEntry, first: int, last: int, *, kept: bool = False) -> Bytes:
        """The stored bytes of rows [first, last), until the thread's next call if they are not to be `kept`."""
        offset, nbytes = self._range(entry, (first, last))
        return self._fill(entry, offset, np.empty(nbytes, np.uint8) if kept else self._buffer(nbytes))

    def _fill(self, entry: TensorEntry, offset: int, buffer: Bytes) -> Bytes:
        view = buffer.data
        shard = self.checkpoint.shard_name(entry.path)
        done = 0
        while done < len(buffer):
            try:
                got = self.checkpoint.files.read_into(shard, view[done:], offset + done)
            except OSError as error:
                raise BadInput(f"{entry.path}: tensor {entry.name}: cannot be read ({error.strerror})") from None
            if got == 0:
                raise BadInput(f"{entry.path}: tensor {entry.name}: the file ends early; download it again")
            done += got
        return buffer

    @staticmethod
    def _check_finite(entry: TensorEntry, values: Float32) -> None:
        # A sum in float32 may overflow to infinity by itself, so it only rules trouble out; then every value is asked.
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.sum(values)
        if np.isfinite(total) or np.isfinite(values).all():
            return
        where = np.unravel_index(int(np.argmin(np.isfinite(values))), values.shape)
        place = ", ".join(str(int(i)) for i in where)
        raise BadInput(
            f"{entry.path}: tensor {entry.name}: NaN or Inf (first at [{place}] of the part read); "
            "the download is damaged, fetch this shard again"
        )

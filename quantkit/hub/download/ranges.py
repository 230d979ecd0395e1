"""Tensors read from the Hub by HTTP range, without a disk: fetched ahead when hinted; small reads share blocks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from quantkit.hub.repo_files import RepoFiles

# Memory for what was hinted and not read yet, and requests at a time for it.
AHEAD_BYTES = 64 * 2**20
AHEAD_REQUESTS = 4
# Scales lie beside their weights and a router's bias beside others: one request brings the neighbours of a small read.
SMALL_READ = 128 * 1024
BLOCK_BYTES = 256 * 1024
MOST_BLOCKS = 64

_Key = tuple[str, int]  # shard, first byte


@dataclass
class _Piece:
    """Bytes of a shard from `offset` on, there once `ready` is done."""

    offset: int
    data: bytearray
    unread: int
    ready: Future[None] = field(default_factory=Future)

    def holds(self, offset: int, length: int) -> bool:
        return self.offset <= offset and offset + length <= self.offset + len(self.data)


class RangeReads:
    """Reads of shards over the network. Used by many threads."""

    def __init__(self, files: RepoFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._ahead: dict[_Key, _Piece] = {}
        self._blocks: OrderedDict[_Key, _Piece] = OrderedDict()
        self._pool = ThreadPoolExecutor(AHEAD_REQUESTS)

    def read_into(self, shard: str, view: memoryview, offset: int) -> int:
        """Read into `view` from byte `offset` on; return how many bytes it got, 0 at the end of the file."""
        length = min(len(view), self._files.file(shard).size - offset)
        if length <= 0:
            return 0
        found = self._find_ahead(shard, offset, length)
        if found is not None:
            key, piece = found
            self._copy(piece, view[:length], offset)
            self._count(key, piece, length)
        elif length <= SMALL_READ:
            first = offset // BLOCK_BYTES * BLOCK_BYTES
            length = min(length, first + BLOCK_BYTES - offset)
            self._copy(self._block(shard, first), view[:length], offset)
        else:
            self._files.read_into(shard, view[:length], offset)
        return length

    def will_need(self, shard: str, offset: int, nbytes: int) -> None:
        """Fetch these bytes in the background if there is memory for them."""
        key = (shard, offset)
        with self._lock:
            held = sum(len(piece.data) for piece in self._ahead.values())
            if key in self._ahead or nbytes <= SMALL_READ or held + nbytes > AHEAD_BYTES:
                return
            piece = self._ahead[key] = _Piece(offset, bytearray(nbytes), nbytes)
            self._pool.submit(self._fill, shard, piece)

    def forget(self, shard: str, offset: int) -> None:
        """What was hinted from this byte on will not be read any more."""
        with self._lock:
            self._ahead.pop((shard, offset), None)

    def close(self) -> None:
        """Begin no further request; those under way end when the files' `sleep` raises."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _fill(self, shard: str, piece: _Piece) -> None:
        try:
            self._files.read_into(shard, memoryview(piece.data), piece.offset)
        except BaseException as error:
            with self._lock:  # a later read tries again
                for pieces in (self._ahead, self._blocks):
                    if pieces.get((shard, piece.offset)) is piece:
                        del pieces[shard, piece.offset]
            piece.ready.set_exception(error)
        else:
            piece.ready.set_result(None)

    def _find_ahead(self, shard: str, offset: int, length: int) -> tuple[_Key, _Piece] | None:
        with self._lock:
            for key, piece in self._ahead.items():
                if key[0] == shard and piece.holds(offset, length):
                    return key, piece
        return None

    def _block(self, shard: str, first: int) -> _Piece:
        """The block that begins at byte `first`, fetched by whoever asks for it first."""
        key = (shard, first)
        with self._lock:
            piece = self._blocks.get(key)
            if piece is not None:
                self._blocks.move_to_end(key)
                return piece
            size = min(BLOCK_BYTES, self._files.file(shard).size - first)
            piece = self._blocks[key] = _Piece(first, bytearray(size), size)
            if len(self._blocks) > MOST_BLOCKS:
                self._blocks.popitem(last=False)
        self._fill(shard, piece)
        return piece

    def _copy(self, piece: _Piece, view: memoryview, offset: int) -> None:
        piece.ready.result()
        begin = offset - piece.offset
        view[:] = memoryview(piece.data)[begin : begin + len(view)]

    def _count(self, key: _Key, piece: _Piece, length: int) -> None:
        with self._lock:
            piece.unread -= length
            if piece.unread <= 0 and self._ahead.get(key) is piece:
                del self._ahead[key]

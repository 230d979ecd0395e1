"""The file in which llama-perplexity keeps a model's log-probabilities to compare others with (--kl-divergence-base).

Little endian, without padding between the parts: the magic, u32 context, i32 vocabulary, i32 chunks, i32 tokens
[chunks, context], rows. The second half of a chunk is scored: row r of it is of the token context // 2 + 1 + r. A row
is f32 scale, f32 lowest log p, and a u16 code per token, padded to an even count: log p = scale * code + lowest.
Probabilities more than SPAN below the row's largest are raised to that. (llama.cpp, tools/perplexity.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import BadInput, QuantkitError
from quantkit.files import partial_path, write_aside

MAGIC = b"_logits_"
HEADER = struct.Struct("<Iii")
SPAN = np.float32(16)  # nats
# A stored row's span, computed again from its log p, is this much off at most.
ROUNDING = np.float32(1e-5)
LARGEST_CODE = 65535
HEAD = 4  # u16 words before the codes


@dataclass(frozen=True)
class BaseFile:
    """A base file's header: `tokens` [chunks, context], and where its rows are."""

    path: Path
    vocab: int
    tokens: NDArray[np.int32]

    @property
    def context(self) -> int:
        """Tokens of a chunk."""
        return int(self.tokens.shape[1])

    @property
    def scored(self) -> int:
        """Rows of all chunks."""
        return len(self.tokens) * rows_per_chunk(self.context)

    def rows(self) -> Iterator[NDArray[np.float32]]:
        """Yield each chunk's log-probabilities [rows_per_chunk, vocab]."""
        rows, words = rows_per_chunk(self.context), _words(self.vocab)
        with self.path.open("rb") as file:
            file.seek(_rows_at(self.tokens.size))
            for _ in self.tokens:
                codes = np.fromfile(file, "<u2", rows * words)
                if len(codes) != rows * words:
                    raise BadInput(f"{self.path}: became shorter while it was read; make it again")
                yield decode(codes.reshape(rows, words), self.vocab)


def rows_per_chunk(context: int) -> int:
    """How many tokens of a chunk are scored."""
    return context - 1 - context // 2


def open_base(path: Path) -> BaseFile:
    """Read a base file's header and check the file's size against it. Raises BadInput for anything else."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(len(MAGIC) + HEADER.size)
            if not head.startswith(MAGIC):
                raise BadInput(f"{path}: not a base file; llama-perplexity --kl-divergence-base writes one")
            if len(head) < len(MAGIC) + HEADER.size:
                raise BadInput(f"{path}: truncated in its header; make it again")
            context, vocab, chunks = HEADER.unpack(head[len(MAGIC) :])
            if context < 4 or vocab < 1 or chunks < 1:
                raise BadInput(f"{path}: {chunks} chunks of {context} tokens of a vocabulary of {vocab}; damaged")
            rows = chunks * rows_per_chunk(context)
            expected = _rows_at(chunks * context) + 2 * rows * _words(vocab)
            if size != expected:
                what = "truncated, or its writer was killed" if size < expected else "has bytes behind its last row"
                raise BadInput(f"{path}: {size} bytes, its header says {expected}; {what}; make it again")
            tokens = np.fromfile(file, "<i4", chunks * context).astype(np.int32).reshape(chunks, context)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    if tokens.min() < 0 or tokens.max() >= vocab:
        raise BadInput(f"{path}: token {tokens.max()} of a vocabulary of {vocab}; damaged")
    return BaseFile(path, vocab, tokens)


def write_base(path: Path, tokens: NDArray[np.int32], vocab: int, rows: Iterable[NDArray[np.float32]]) -> None:
    """Write a base file for `tokens` [chunks, context] from `rows`, pieces [any, vocab] of log-probabilities in order.

    No more than a piece is in memory. Raises QuantkitError, without a file, when rows are too few, too many or NaN.
    """
    try:
        write_aside(path, _parts(path, np.ascontiguousarray(tokens, "<i4"), vocab, rows))
    except BaseException:
        partial_path(path).unlink(missing_ok=True)  # it may be large, and nobody can go on with it
        raise


def _parts(
    path: Path, tokens: NDArray[np.int32], vocab: int, rows: Iterable[NDArray[np.float32]]
) -> Iterator[bytes | memoryview]:
    chunks, context = tokens.shape
    yield MAGIC + HEADER.pack(context, vocab, chunks)
    yield tokens.tobytes()
    missing = chunks * rows_per_chunk(context)
    for piece in rows:
        missing -= len(piece)
        if missing < 0 or piece.shape[1] != vocab:
            raise QuantkitError(f"{path}: rows {piece.shape} do not fit {chunks} chunks of {context}, {vocab} tokens")
        if np.isnan(piece).any():
            raise QuantkitError(f"{path}: log-probabilities of the reference became NaN; no base file can be made")
        yield encode(piece).tobytes()
    if missing:
        raise QuantkitError(f"{path}: {missing} rows are missing; no base file was made")


def encode(log_probs: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Codes [rows, words] of log-probabilities [rows, vocab]; float32 in llama-perplexity's order of operations.

    Decoded rows give their own bytes again.
    """
    values = np.ascontiguousarray(log_probs, np.float32)
    most, least = values.max(1), values.min(1)
    lowest = np.where(least >= most - SPAN - ROUNDING, least, most - SPAN)
    scale = (most - lowest) / np.float32(LARGEST_CODE)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scale > 0, np.float32(1) / scale, np.float32(0))
        codes = np.rint(inverse[:, None] * (values - lowest[:, None]))
    raw = np.zeros((len(values), _words(values.shape[1])), "<u2")
    raw[:, :HEAD] = np.stack([scale, lowest], 1).astype("<f4").view("<u2")
    raw[:, HEAD : HEAD + values.shape[1]] = np.where(values > lowest[:, None], codes, 0)
    return raw


def decode(codes: NDArray[np.uint16], vocab: int) -> NDArray[np.float32]:
    """Log-probabilities [rows, vocab] of codes [rows, words]."""
    head = np.ascontiguousarray(codes[:, :HEAD]).view("<f4")
    values: NDArray[np.float32] = head[:, :1] * codes[:, HEAD : HEAD + vocab].astype(np.float32) + head[:, 1:2]
    return values


def _words(vocab: int) -> int:
    """u16 words of a row: two floats, and the codes rounded up to an even count."""
    return HEAD + 2 * ((vocab + 1) // 2)


def _rows_at(tokens: int) -> int:
    return len(MAGIC) + HEADER.size + 4 * tokens

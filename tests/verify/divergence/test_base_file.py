"""llama-perplexity's base file: bytes written by hand, the program's own arithmetic, damaged files."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.errors import BadInput, QuantkitError
from quantkit.verify.divergence.base_file import decode, encode, open_base, rows_per_chunk, write_base

CONTEXT, VOCAB, CHUNKS = 8, 5, 2
TOKENS = np.arange(CHUNKS * CONTEXT, dtype=np.int32).reshape(CHUNKS, CONTEXT) % VOCAB


def by_hand() -> bytes:
    """Two chunks of eight tokens; row n of the six has scale 2^-10, lowest -n, and codes 0, n, 100, 65535, 7."""
    raw = b"_logits_" + struct.pack("<Iii", CONTEXT, VOCAB, CHUNKS) + struct.pack("<16i", *TOKENS.ravel())
    for row in range(6):
        raw += struct.pack("<ff6H", 2.0**-10, -float(row), 0, row, 100, 65535, 7, 0)
    return raw


def as_the_program_encodes(logits: NDArray[np.float32]) -> NDArray[np.uint16]:
    """log_softmax of tools/perplexity/perplexity.cpp, operation by operation in float32, from raw logits."""
    most = logits.max(1)
    least = np.maximum(logits.min(1), most - np.float32(16))
    summed = np.exp(logits - most[:, None]).astype(np.float64).sum(1)
    lowest = least - most - np.log(summed).astype(np.float32)
    scale = (most - least) / np.float32(65535)
    inverse = np.float32(1) / scale
    codes = np.rint(inverse[:, None] * (logits - least[:, None]))
    codes[logits <= least[:, None]] = 0
    raw = np.zeros((len(logits), 4 + logits.shape[1] + logits.shape[1] % 2), np.uint16)
    raw[:, :4] = np.stack([scale, lowest], 1).view(np.uint16)
    raw[:, 4 : 4 + logits.shape[1]] = codes
    return raw


def logits(deviation: float, *, rows: int = 500, vocab: int = 1001) -> NDArray[np.float32]:
    random = np.random.default_rng(int(deviation * 10))
    values = random.standard_normal((rows, vocab)) * deviation + random.standard_normal((rows, 1)) * 20
    return values.astype(np.float32)


def log_softmax(values: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = values.astype(np.float64) - values.max(1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(1, keepdims=True))).astype(np.float32)


def pieces(rows: NDArray[np.float32], length: int) -> Iterator[NDArray[np.float32]]:
    for first in range(0, len(rows), length):
        yield rows[first : first + length]


def test_reads_bytes_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "base"
    path.write_bytes(by_hand())
    base = open_base(path)
    assert (base.context, base.vocab, base.scored) == (CONTEXT, VOCAB, 6)
    assert (base.tokens == TOKENS).all()
    assert rows_per_chunk(CONTEXT) == 3  # tokens 5, 6 and 7 of each
    first, second = base.rows()
    expected = [[0.0, 0.0, 100 / 1024, 65535 / 1024, 7 / 1024], [-1.0, -1 + 1 / 1024, -1 + 100 / 1024]]
    assert first[0].tolist() == expected[0]
    assert first[1, :3].tolist() == expected[1]
    assert second[2, 1] == -5 + 5 / 1024


@pytest.mark.parametrize("deviation", [1.0, 2.0, 4.0, 8.0, 16.0])
def test_codes_are_the_programs_but_for_the_rounding_of_the_softmax(deviation: float) -> None:
    """We start from log-probabilities, the program from logits: a code in some hundreds is one off, none more."""
    values = logits(deviation)
    ours, theirs = encode(log_softmax(values)), as_the_program_encodes(values)
    difference = np.abs(ours[:, 4:].astype(int) - theirs[:, 4:].astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.005
    heads = ours[:, :4].copy().view(np.float32), theirs[:, :4].copy().view(np.float32)
    np.testing.assert_allclose(*heads, rtol=1e-6)


@pytest.mark.parametrize("deviation", [2.0, 4.0, 8.0, 16.0])
def test_decoded_rows_give_their_bytes_again(deviation: float) -> None:
    theirs = as_the_program_encodes(logits(deviation))
    assert (encode(decode(theirs, 1001)) == theirs).all()


def test_decoding_is_within_half_a_code_above_the_floor() -> None:
    values = log_softmax(logits(8.0))
    again = decode(encode(values), 1001)
    most = values.max(1, keepdims=True)
    kept = values > most - 16
    assert np.abs(again - values)[kept].max() < 0.51 * 16 / 65535
    assert np.abs(again - (most - 16))[~kept].max() < 1e-5


def test_equal_probabilities_and_impossible_tokens() -> None:
    equal = np.full((1, 4), -np.log(4), np.float32)
    assert (decode(encode(equal), 4) == equal).all()
    impossible = np.array([[np.log(0.5), np.log(0.5), -np.inf]], np.float32)
    assert decode(encode(impossible), 3)[0] == pytest.approx([np.log(0.5)] * 2 + [np.log(0.5) - 16], abs=1e-5)


@pytest.mark.parametrize("length", [1, 4, 6])
def test_written_in_pieces_of_any_length(length: int, tmp_path: Path) -> None:
    rows = log_softmax(logits(4.0, rows=6, vocab=VOCAB))
    path = tmp_path / "base"
    write_base(path, TOKENS, VOCAB, pieces(rows, length))
    base = open_base(path)
    assert (base.tokens == TOKENS).all()
    assert np.abs(np.concatenate(list(base.rows())) - rows).max() < 1e-3
    again = tmp_path / "again"
    write_base(again, base.tokens, base.vocab, base.rows())
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.zeros((5, VOCAB), np.float32), "1 rows are missing"),
        (np.zeros((7, VOCAB), np.float32), "do not fit 2 chunks of 8"),
        (np.zeros((6, VOCAB + 1), np.float32), "do not fit 2 chunks of 8"),
        (np.full((6, VOCAB), np.nan, np.float32), "became NaN"),
    ],
)
def test_wrong_rows_make_no_file(rows: NDArray[np.float32], words: str, tmp_path: Path) -> None:
    path = tmp_path / "base"
    with pytest.raises(QuantkitError, match=words):
        write_base(path, TOKENS, VOCAB, pieces(rows, 2))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not a base file"),
        (b"GGUF" + by_hand(), "not a base file"),
        (by_hand()[:15], "truncated in its header"),
        (by_hand()[:60], "60 bytes, its header says 204; truncated"),
        (by_hand()[:-1], "203 bytes, its header says 204; truncated"),
        (by_hand() + b"x", "behind its last row"),
        (b"_logits_" + struct.pack("<Iii", 8, -5, 2), "damaged"),
        (b"_logits_" + struct.pack("<Iii", 8, 5, 0), "damaged"),
        (by_hand().replace(struct.pack("<i", 4), struct.pack("<i", 9)), "damaged"),
    ],
)
def test_damaged_files_are_refused(raw: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "base"
    path.write_bytes(raw)
    with pytest.raises(BadInput, match=words) as refused:
        open_base(path)
    assert str(path) in str(refused.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        open_base(tmp_path / "none")

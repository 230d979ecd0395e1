"""Rows to pieces of tokens, and pieces of several sources to one sequence with the shares that the manifest wants.

Packing: every row is a document of its own. One longer than the sequence length is cut into pieces of that length,
each of which is a document. The next piece always comes from the source that is furthest below its share, so the
shares hold at any budget; the last piece is cut so that the budget is met exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from quantkit.calibration.corpora.manifest import Source
from quantkit.calibration.corpora.render import ChatTokenizer, RejectedRow
from quantkit.calibration.corpora.rows import Rows


@dataclass
class Taken:
    """What was taken of one source so far, and what was not."""

    source: Source
    sha256: str
    rows: int
    tokens: int = 0
    used: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # reason: place of the first such row

    def reject(self, place: str, reason: str) -> None:
        """Count a row that cannot be used."""
        self.reasons[reason] += 1
        self.first.setdefault(reason, place)


def pieces(
    taken: Taken, rows: Rows, order: Iterable[int], tokenizer: ChatTokenizer, sequence_length: int
) -> Iterator[list[int]]:
    """The pieces of a source's rows in `order`; a row is read and tokenized when its first piece is asked for."""
    for index in order:
        row = rows.row(index)
        try:
            ids = tokenizer.encode(row)
        except RejectedRow as rejected:
            taken.reject(row.place, str(rejected))
            continue
        taken.used += 1
        for start in range(0, len(ids), sequence_length):
            yield ids[start : start + sequence_length]


def pack(streams: list[tuple[Taken, Iterator[list[int]]]], budget: int | None) -> Iterator[list[int]]:
    """Pieces of all streams until `budget` tokens are reached, or the streams end. Counts tokens in each `Taken`."""
    streams = list(streams)
    total = 0
    while streams and total != budget:
        taken, stream = _furthest_below(streams)
        piece = next(stream, None)
        if piece is None:
            streams = [entry for entry in streams if entry[0] is not taken]
            continue
        if budget is not None:
            piece = piece[: budget - total]
        taken.tokens += len(piece)
        total += len(piece)
        yield piece


def _furthest_below(streams: list[tuple[Taken, Iterator[list[int]]]]) -> tuple[Taken, Iterator[list[int]]]:
    """The stream that lacks most tokens to its share; streams that ended no longer count."""
    shares = sum(taken.source.share for taken, _ in streams)
    total = 1 + sum(taken.tokens for taken, _ in streams)
    return max(streams, key=lambda entry: entry[0].source.share / shares * total - entry[0].tokens)

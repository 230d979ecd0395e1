"""Which rows of the hidden states are one document, and which documents go through attention together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from quantkit.forward.rows import round_up

# Tokens, padding included, that go through attention at once: enough for the matrix products, few enough for caches.
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Documents:
    """Token ids of all documents one after the other, int32 [T], and where each starts, int64 [D + 1].

    A document attends to itself only, with positions from 0. That is what right-padded and what packed batches
    compute, without the padding.
    """

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]

    @property
    def tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Batch:
    """Documents of similar length: `rows` int64 [M] are their tokens, `places` int64 [M] where those go in [B * L]."""

    number: int
    documents: int
    length: int
    rows: torch.Tensor
    places: torch.Tensor


def batches(documents: Documents, batch_tokens: int = BATCH_TOKENS) -> Iterator[Batch]:
    """Yield every document in exactly one batch, shortest first; a batch holds about `batch_tokens` at most."""
    lengths = np.diff(documents.starts)
    group: list[int] = []
    number = 0
    for document in np.argsort(lengths, kind="stable").tolist():
        if group and (len(group) + 1) * round_up(int(lengths[document])) > batch_tokens:
            yield _batch(number, group, documents.starts)
            group, number = [], number + 1
        group.append(document)
    if group:
        yield _batch(number, group, documents.starts)


def _batch(number: int, group: list[int], starts: npt.NDArray[np.int64]) -> Batch:
    length = round_up(int(max(starts[document + 1] - starts[document] for document in group)))
    rows = [np.arange(starts[document], starts[document + 1]) for document in group]
    places = [np.arange(len(part)) + index * length for index, part in enumerate(rows)]
    return Batch(
        number, len(group), length, torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(places))
    )

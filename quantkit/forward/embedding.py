"""Into the layers and out of them: token embeddings, and logits a part of the vocabulary at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from quantkit.forward.decoder import StreamedRMSNorm
from quantkit.forward.documents import Documents
from quantkit.forward.ordered import run_ordered
from quantkit.forward.states import HiddenStates
from quantkit.forward.weights import Weights

# Rows of the embedding or output matrix in memory at once: 4096 x 3072 in float32 are 50 MB.
VOCABULARY_ROWS = 4096
# Tokens whose logits are worked on together: 512 x 4096 in float32 are 8 MB.
TOKEN_ROWS = 512


def _vocabulary(weights: Weights, role: str) -> Iterator[tuple[int, torch.Tensor]]:
    vocab = weights.hparams.vocab
    for first in range(0, vocab, VOCABULARY_ROWS):
        yield first, weights.matrix_rows(role, (first, min(first + VOCABULARY_ROWS, vocab)))


def _final_norm(weights: Weights) -> StreamedRMSNorm:
    return StreamedRMSNorm(weights.values("output_norm"), weights.hparams.norm_eps, torch.float32)


def embed(weights: Weights, documents: Documents, residual: HiddenStates, threads: int = 1) -> None:
    """Fill `residual` [T, H] with the embeddings of the documents' tokens."""
    ids = torch.from_numpy(documents.ids.astype(np.int64))
    for first, matrix in _vocabulary(weights, "token_embd"):
        rows = ((ids >= first) & (ids < first + len(matrix))).nonzero().flatten()

        def work(part: torch.Tensor, first: int = first, matrix: torch.Tensor = matrix) -> None:
            residual.write(part, matrix[(ids[part] - first).to(matrix.device)])

        run_ordered(torch.split(rows, TOKEN_ROWS), work, lambda part, done: None, threads)


def logits(weights: Weights, residual: HiddenStates, rows: torch.Tensor) -> torch.Tensor:
    """Return the logits of the tokens `rows` [M], float32 [M, vocab]: for small models and few tokens."""
    normed = _final_norm(weights)(residual.read(rows))
    return torch.cat([normed @ matrix.T for _, matrix in _vocabulary(weights, "output")], dim=1)


def log_probabilities(
    weights: Weights, residual: HiddenStates, rows: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return log p(targets[m] | tokens up to rows[m]), float64 [M], over the whole vocabulary.

    The output matrix is read once; sums of exponentials are carried from one part of the vocabulary to the next.
    """
    norm = _final_norm(weights)
    index = torch.from_numpy(rows)
    wanted = torch.from_numpy(targets)
    total = torch.full((len(rows),), -torch.inf, dtype=torch.float64)
    chosen = torch.zeros(len(rows), dtype=torch.float64)
    for first, matrix in _vocabulary(weights, "output"):
        for begin in range(0, len(rows), TOKEN_ROWS):
            part = slice(begin, begin + TOKEN_ROWS)
            scores = (norm(residual.read(index[part])) @ matrix.T).cpu()
            total[part] = torch.logaddexp(total[part], scores.logsumexp(1).double())
            place = wanted[part] - first
            here = ((place >= 0) & (place < len(matrix))).nonzero().flatten()
            chosen[begin + here] = scores[here, place[here]].double()
    return (chosen - total).numpy()

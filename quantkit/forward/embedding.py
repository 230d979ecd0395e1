"""Into the layers and out of them: token embeddings, and logits a part of the vocabulary at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from quantkit.forward.decoder import StreamedRMSNorm
from quantkit.forward.documents import Documents
from quantkit.forward.ordered import run_ordered
from quantkit.forward.states import HiddenStates
from quantkit.forward.stored import FIRST_PLACES
from quantkit.forward.weights import ModelWeights

# Rows of the embedding or output matrix in memory at once: 4096 x 3072 in float32 are 50 MB.
VOCABULARY_ROWS = 4096
# Tokens whose logits are worked on together: 512 x 4096 in float32 are 8 MB.
TOKEN_ROWS = 512
# Full rows of log-probabilities in memory at once, bytes.
ROWS_BYTES = 2**28


def _vocabulary(weights: ModelWeights, role: str) -> Iterator[tuple[int, torch.Tensor]]:
    vocab = weights.hparams.vocab
    for first in range(0, vocab, VOCABULARY_ROWS):
        yield first, weights.matrix_rows(role, (first, min(first + VOCABULARY_ROWS, vocab)))


def final_norm(weights: ModelWeights) -> StreamedRMSNorm:
    """The norm before the output matrix; its results are float32."""
    return StreamedRMSNorm(weights.values("output_norm"), weights.hparams.norm_eps, torch.float32)


def embed(
    weights: ModelWeights,
    documents: Documents,
    residual: HiddenStates,
    threads: int = 1,
    served: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Fill `residual` [T, H] with the embeddings of the documents' tokens.

    With `served` rows [V, H] of the matrix become what it makes of them: as they will be in a quantized file.
    """
    ids = torch.from_numpy(documents.ids.astype(np.int64))
    weights.stored.expect(FIRST_PLACES)
    for first, stored in _vocabulary(weights, "token_embd"):
        rows = ((ids >= first) & (ids < first + len(stored))).nonzero().flatten()
        matrix = stored if served is None or not len(rows) else served(stored)

        def work(part: torch.Tensor, first: int = first, matrix: torch.Tensor = matrix) -> None:
            residual.write(part, matrix[(ids[part] - first).to(matrix.device)])

        run_ordered(torch.split(rows, TOKEN_ROWS), work, lambda part, done: None, threads)


def logits(weights: ModelWeights, residual: HiddenStates, rows: torch.Tensor) -> torch.Tensor:
    """Return the logits of the tokens `rows` [M], float32 [M, vocab]: for small models and few tokens."""
    normed = final_norm(weights)(residual.read(rows))
    return torch.cat([normed @ matrix.T for _, matrix in _vocabulary(weights, "output")], dim=1)


def log_probabilities(
    weights: ModelWeights, residual: HiddenStates, rows: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return log p(targets[m] | tokens up to rows[m]), float64 [M], over the whole vocabulary."""
    return score_tokens(weights, residual, rows, targets, top=0).actual


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities of M tokens: of those asked for [M], and of the most probable ones [M, K] with their ids."""

    actual: npt.NDArray[np.float64]
    top_ids: npt.NDArray[np.int32]
    top: npt.NDArray[np.float32]


def score_tokens(
    weights: ModelWeights,
    residual: HiddenStates,
    rows: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
    top: int,
) -> TokenScores:
    """Return log p(targets[m] | tokens up to rows[m]) and the `top` most probable tokens there, best first.

    The output matrix is read once; sums of exponentials and the best so far are carried from one part of the
    vocabulary to the next. Where a logit is not finite all of the token's scores are NaN.
    """
    norm = final_norm(weights)
    index, wanted = torch.from_numpy(rows), torch.from_numpy(targets)
    top = min(top, weights.hparams.vocab)
    total = torch.full((len(rows),), -torch.inf, dtype=torch.float64)
    chosen = torch.zeros(len(rows), dtype=torch.float64)
    best, ids = torch.full((len(rows), top), -torch.inf), torch.zeros(len(rows), top, dtype=torch.int32)
    for first, matrix in _vocabulary(weights, "output"):
        for begin in range(0, len(rows), TOKEN_ROWS):
            part = slice(begin, begin + TOKEN_ROWS)
            scores = (norm(residual.read(index[part])) @ matrix.T).cpu()
            total[part] = torch.logaddexp(total[part], scores.logsumexp(1).double())
            place = wanted[part] - first
            here = ((place >= 0) & (place < len(matrix))).nonzero().flatten()
            chosen[begin + here] = scores[here, place[here]].double()
            if top:
                _keep_best(best[part], ids[part], scores, first)
    total[~torch.isfinite(total)] = torch.nan
    for begin in range(0, len(rows), TOKEN_ROWS):
        part = slice(begin, begin + TOKEN_ROWS)
        best[part] = (best[part].double() - total[part, None]).float()
    return TokenScores((chosen - total).numpy(), ids.numpy(), best.numpy())


def _keep_best(best: torch.Tensor, ids: torch.Tensor, scores: torch.Tensor, first: int) -> None:
    """Merge `scores` [M, N] of the tokens from `first` on into the `best` [M, K] of those before, and their `ids`."""
    before = min(first, best.shape[1])
    both = torch.cat([best[:, :before], scores], dim=1)
    count = min(best.shape[1], both.shape[1])
    best[:, :count], place = both.topk(count)
    fresh = torch.arange(first, first + scores.shape[1], dtype=torch.int32).expand(len(scores), -1)
    ids[:, :count] = torch.cat([ids[:, :before], fresh], dim=1).gather(1, place)


def log_probability_rows(
    weights: ModelWeights, residual: HiddenStates, rows: npt.NDArray[np.int64]
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield log p over the whole vocabulary for the tokens `rows`, in order, float32 [m, vocab] of about ROWS_BYTES.

    The output matrix is read once for each part yielded. Where a logit is not finite all of the row is NaN.
    """
    vocab = weights.hparams.vocab
    step = max(ROWS_BYTES // (4 * vocab), 1)
    norm = final_norm(weights)
    for begin in range(0, len(rows), step):
        normed = norm(residual.read(torch.from_numpy(rows[begin : begin + step])))
        scores = torch.empty(len(normed), vocab)
        for first, matrix in _vocabulary(weights, "output"):
            scores[:, first : first + len(matrix)] = normed @ matrix.T
        total = scores.logsumexp(1, keepdim=True)
        total[~torch.isfinite(total)] = torch.nan
        yield scores.sub_(total).numpy()

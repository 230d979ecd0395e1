"""Log-probabilities of any checkpoint or GGUF without a server, from the streamed forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import BadInput
from quantkit.forward.documents import Documents
from quantkit.forward.embedding import ROWS_BYTES, log_probability_rows, score_tokens
from quantkit.forward.streamed import NothingFinite, StreamedForward
from quantkit.model.spec import HParams
from quantkit.run.streamed_pass import run_layers, streamed_pass
from quantkit.verify.records import Passage, Scores

# A vocabulary up to so large is scored as a whole, of a larger one so many tokens at each place.
WHOLE_VOCABULARY = 8192
TOP = 1024


def default_top(vocab: int) -> int:
    """How many tokens are kept at each place where nobody said."""
    return vocab if vocab <= WHOLE_VOCABULARY else TOP


def score_streamed(
    path: Path,
    passages: Sequence[Passage],
    *,
    top: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
    memory: int | None = None,
    quiet: bool = False,
) -> list[Scores]:
    """Return what the model at `path` says of every passage, with the `top` most probable tokens (`default_top`).

    Scores of tokens whose state is not finite are NaN. Raises BadInput for a model or passage that cannot be scored.
    """
    with run_passages(
        path, passages, device=device, precision=precision, memory=memory, quiet=quiet, top=top
    ) as finished:
        return finished.scores()


class FinishedPass:
    """The hidden states of all passages behind the last layer, and what can be read off them."""

    def __init__(self, forward: StreamedForward, passages: Sequence[Passage], top: int) -> None:
        self.hparams = forward.weights.hparams
        self._forward = forward
        self._passages = passages
        self._top = top

    def scores(self) -> list[Scores]:
        """Scores of each passage."""
        starts, ids = self._forward.documents.starts, self._forward.documents.ids
        pieces = [np.arange(a, b - 1) for a, b in zip(starts, starts[1:], strict=False)]
        rows = np.concatenate(pieces)
        found = score_tokens(
            self._forward.weights, self._forward.states.residual, rows, ids[rows + 1].astype(np.int64), self._top
        )
        dead = ~self._alive(rows)
        found.actual[dead] = np.nan
        found.top[dead] = np.nan
        ends = np.cumsum([len(piece) for piece in pieces])
        parts = [slice(end - len(piece), end) for piece, end in zip(pieces, ends, strict=True)]
        return [Scores(found.actual[part], found.top_ids[part], found.top[part]) for part in parts]

    def full_rows(self, positions: Sequence[range]) -> Iterator[NDArray[np.float32]]:
        """Yield log p of the whole vocabulary behind the tokens at `positions[i]` of passage i, in order.

        float32 [m, vocab], of about ROWS_BYTES together. For llama-perplexity's base file, positions are
        range(n_ctx // 2, n_ctx - 1).
        """
        starts = self._forward.documents.starts
        rows = np.concatenate([int(start) + np.array(places) for start, places in zip(starts, positions, strict=False)])
        done = 0
        for part in log_probability_rows(self._forward.weights, self._forward.states.residual, rows.astype(np.int64)):
            part[~self._alive(rows[done : done + len(part)])] = np.nan
            done += len(part)
            yield part

    def _alive(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        alive: NDArray[np.bool_] = self._forward.states.alive.cpu().numpy()[rows]
        return alive


@contextmanager
def run_passages(
    path: Path,
    passages: Sequence[Passage],
    *,
    device: str = "cpu",
    precision: str = "float32",
    memory: int | None = None,
    quiet: bool = False,
    top: int | None = None,
) -> Iterator[FinishedPass]:
    """Run the passages through all layers of the model at `path`, for what is then asked inside of the `with`.

    Tokens whose state becomes NaN or infinite do not stop it. Raises BadInput for a model or passage that cannot be
    run, and when `memory`, for the whole process in bytes, does not hold one worker and the scores.
    """

    def kept(h: HParams) -> int:
        return default_top(h.vocab) if top is None else min(top, h.vocab)

    with streamed_pass(
        path,
        lambda h: as_documents(passages, h, path),
        device=device,
        precision=precision,
        memory=memory,
        beside=lambda h, documents: documents.tokens * kept(h) * 8 + ROWS_BYTES,
    ) as forward:
        # Where nothing is finite any more every score will be NaN.
        with suppress(NothingFinite):
            run_layers(forward, "scoring", quiet=quiet)
        yield FinishedPass(forward, passages, kept(forward.weights.hparams))


def as_documents(passages: Sequence[Passage], hparams: HParams, path: Path) -> Documents:
    """The passages one after the other. Raises BadInput for one with nothing to score or that the model cannot take."""
    if not passages:
        raise BadInput("no text to score; give at least one")
    for passage in passages:
        name = f"text {passage.domain}/{passage.name}"
        if len(passage.ids) < 2:
            raise BadInput(f"{name}: {len(passage.ids)} tokens, nothing can be scored; leave it out")
        if len(passage.ids) > hparams.context:
            raise BadInput(
                f"{name}: {len(passage.ids)} tokens, {path} takes {hparams.context}; cut it into shorter passages"
            )
        if passage.ids.min() < 0 or passage.ids.max() >= hparams.vocab:
            raise BadInput(
                f"{name}: a token id is outside of the vocabulary of {path}, {hparams.vocab}; tokenize again"
            )
    starts = np.cumsum([0, *(len(passage.ids) for passage in passages)])
    return Documents(np.concatenate([passage.ids for passage in passages]).astype(np.int32), starts.astype(np.int64))

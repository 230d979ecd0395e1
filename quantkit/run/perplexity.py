"""Perplexity of a checkpoint that no machine here could load: the streamed forward over a text, then the head."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantkit.calibration.tokens import TokenSet
from quantkit.errors import BadInput, QuantkitError
from quantkit.forward.documents import Documents
from quantkit.forward.embedding import log_probabilities
from quantkit.run.sizes import peak_resident
from quantkit.run.streamed_pass import run_layers, streamed_pass


@dataclass(frozen=True)
class PerplexityResult:
    """exp of the mean negative log-likelihood over the `scored` tokens, and its standard error (tokens independent)."""

    perplexity: float
    standard_error: float
    scored: int
    tokens: int
    documents: int
    sequence_length: int
    tokens_sha256: str
    precision: str
    seconds: float
    peak_rss: int


def measure_perplexity(
    source: Path,
    tokens: TokenSet,
    *,
    device: str = "cpu",
    precision: str = "float32",
    memory: int | None = None,
    quiet: bool = False,
) -> PerplexityResult:
    """Score every token of every document but its first, which has nothing before it.

    Raises BadInput when there is nothing to score, QuantkitError when the model's answer is not finite.
    """
    started = time.monotonic()
    documents = Documents(tokens.ids, tokens.starts)
    rows, targets = _predictions(documents)
    if not len(rows):
        raise BadInput("the text has fewer than two tokens; nothing can be scored")
    with streamed_pass(source, lambda hparams: documents, device=device, precision=precision, memory=memory) as forward:
        run_layers(forward, "running", quiet=quiet)
        for (layer, expert), count in forward.states.excluded.items():
            place = f"layer {layer}" if expert is None else f"layer {layer}, expert {expert}"
            raise QuantkitError(f"{source}: {place}: the state of {count} tokens became NaN or infinite; no perplexity")
        scores = log_probabilities(forward.weights, forward.states.residual, rows, targets)
    if not np.isfinite(scores).all():
        raise QuantkitError(f"{source}: the logits became NaN or infinite; no perplexity")
    mean = -float(scores.mean())
    perplexity = math.exp(mean) if mean < math.log(sys.float_info.max) else math.inf
    return PerplexityResult(
        perplexity=perplexity,
        standard_error=perplexity * float(scores.std()) / math.sqrt(len(scores)),
        scored=len(rows),
        tokens=documents.tokens,
        documents=len(tokens.starts) - 1,
        sequence_length=tokens.sequence_length,
        tokens_sha256=tokens.sha256(),
        precision=str(forward.weights.dtype).removeprefix("torch."),
        seconds=time.monotonic() - started,
        peak_rss=peak_resident(),
    )


def _predictions(documents: Documents) -> tuple[np.ndarray, np.ndarray]:
    """Rows [M] whose next token belongs to the same document, and those tokens [M]."""
    last = np.zeros(documents.tokens, bool)
    last[documents.starts[1:] - 1] = True
    rows = np.flatnonzero(~last)
    return rows, documents.ids[rows + 1].astype(np.int64)

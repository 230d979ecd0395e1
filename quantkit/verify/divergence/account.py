"""What a report shows of a divergence beside its figures: histogram, positions, domains, and the worst places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from quantkit.verify.divergence.figures import PassageDivergence
from quantkit.verify.records import Passage, Scores

HISTOGRAM = np.logspace(-6, 1, 36)  # nats; what is below or above counts into the outer bins
POSITION_BIN = 64
WORST, ALTERNATIVES, CONTEXT_TOKENS = 10, 5, 48

Decode = Callable[[Sequence[int]], str]


def histogram(parts: Sequence[PassageDivergence]) -> dict[str, list[float]]:
    """Counts of positions between logarithmic edges, nats."""
    kld = np.concatenate([part.kld[part.finite] for part in parts])
    counts, _ = np.histogram(np.clip(kld, HISTOGRAM[0], HISTOGRAM[-1]), HISTOGRAM)
    return {"edges": [float(f"{edge:.3g}") for edge in HISTOGRAM], "counts": counts.tolist()}


def by_position(parts: Sequence[PassageDivergence]) -> list[dict[str, float]]:
    """Mean divergence by how many tokens a position has before it."""
    longest = max(len(part.kld) for part in parts)
    rows = []
    for first in range(0, longest, POSITION_BIN):
        inside = slice(first, first + POSITION_BIN)
        kld = np.concatenate([part.kld[inside][part.finite[inside]] for part in parts])
        same = np.concatenate([part.same_top1[inside][part.finite[inside]] for part in parts])
        if len(kld):
            rows.append(
                {
                    "from": first + 1,
                    "to": min(first + POSITION_BIN, longest),
                    "kld": float(kld.mean()),
                    "same_top1": float(same.mean()),
                }
            )
    return rows


def worst_places(
    passages: Sequence[Passage],
    scores: Sequence[tuple[Scores, Scores]],
    parts: Sequence[PassageDivergence],
    decode: Decode,
) -> list[dict[str, Any]]:
    """The places of greatest divergence, at most one per passage, with both models' first choices in words."""
    worst = sorted(
        (
            (
                float(np.where(part.finite, part.kld, -1).max()),
                number,
                int(np.where(part.finite, part.kld, -1).argmax()),
            )
            for number, part in enumerate(parts)
        ),
        reverse=True,
    )[:WORST]
    return [
        {
            "domain": passages[number].domain,
            "passage": passages[number].name,
            "position": place + 1,
            "kld": kld,
            "context": decode(passages[number].ids[max(0, place + 1 - CONTEXT_TOKENS) : place + 1].tolist()),
            "actual": decode([int(passages[number].ids[place + 1])]),
            "reference": _choices(scores[number][0], place, decode),
            "quantized": _choices(scores[number][1], place, decode),
        }
        for kld, number, place in worst
        if kld >= 0
    ]


def _choices(scores: Scores, place: int, decode: Decode) -> list[dict[str, Any]]:
    return [
        {"text": decode([int(token)]), "p": float(np.exp(logprob))}
        for token, logprob in zip(scores.top_ids[place, :ALTERNATIVES], scores.top[place, :ALTERNATIVES], strict=True)
    ]

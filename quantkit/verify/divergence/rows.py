"""Scores from what servers list per position: token ids and log-probabilities, some of them perhaps no numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantkit.verify.records import Scores

# Servers write minus infinity as -9999 (vLLM) or as the lowest float32 (llama.cpp).
NOT_FINITE = -9999.0


class Rows:
    """Scores of M positions with K tokens each, filled position by position; what is never filled stays NaN."""

    def __init__(self, positions: int, top: int) -> None:
        self._actual = np.full(positions, np.nan)
        self._ids = np.tile(np.arange(top, dtype=np.int32), (positions, 1))
        self._top = np.full((positions, top), np.nan, np.float32)

    def put(self, position: int, actual: float | None, ids: Sequence[int], logprobs: Sequence[float | None]) -> None:
        """Set a position from log p of the actual token and of at least K tokens in any order; None is no number.

        A position with fewer tokens, or with one that has no finite log p among its K best, becomes NaN.
        """
        self._actual[position] = finite(actual)
        width = self._top.shape[1]
        values = np.array([np.nan if value is None else value for value in logprobs], np.float64)
        values[values <= NOT_FINITE] = np.nan
        # NaN sorts behind everything, so it gets among the best only where numbers are too few.
        order = np.argsort(-values, kind="stable")[:width]
        if len(order) == width and np.isfinite(values[order]).all():
            self._ids[position] = np.asarray(ids, np.int32)[order]
            self._top[position] = values[order]
        else:
            self._actual[position] = np.nan

    def scores(self) -> Scores:
        """What was put so far."""
        return Scores(self._actual, self._ids, self._top)


def finite(value: float | None) -> float:
    """A server's log-probability, NaN where it is none."""
    return float("nan") if value is None or not value > NOT_FINITE else float(value)


def as_list(ids: NDArray[np.int32]) -> list[int]:
    """Token ids as JSON takes them."""
    return [int(token) for token in ids]

"""Answers by loop, request and step, and how metrics go through them.

A Rate has one entry per request, in the order of the requests, so that two of the same requests can be resampled
together. What one model does is counted in its sampling loops, or in the greedy loop where there are no others; what
is compared answer by answer is compared in the greedy loop, where both models answered the same messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.verify.capture_file import GREEDY
from quantkit.verify.records import Answer, Rate, Request

Answers = Mapping[tuple[int, str, int], Answer]  # by loop, request id, step

STRIPPED = "#stripped"
"""Stands behind the id of a request in the control of its loop, in which reasoning was not sent back."""


@dataclass(frozen=True)
class Turns:
    """Answers in reach of a metric: (loop, request id) to the answers of the steps from 0 on, without a gap."""

    by_talk: Mapping[tuple[int, str], Sequence[Answer]]
    loops: Sequence[int]  # the loops that rates of one model are counted in

    def talks(self, request: str) -> Iterator[Sequence[Answer]]:
        """The conversations that a request's rates are counted in."""
        for loop in self.loops:
            if answers := self.by_talk.get((loop, request)):
                yield answers

    def everything(self, request: str) -> Iterator[Answer]:
        """All answers to a request, greedy ones and those of the control included."""
        for (_, name), answers in self.by_talk.items():
            if name.removesuffix(STRIPPED) == request:
                yield from answers

    def greedy(self, request: str) -> Sequence[Answer]:
        """The answers of the greedy loop."""
        return self.by_talk.get((GREEDY, request), ())


def turns_of(answers: Answers) -> Turns:
    """Sort answers into conversations."""
    by_talk: dict[tuple[int, str], list[Answer]] = {}
    for (loop, request, step), answer in sorted(answers.items()):
        talk = by_talk.setdefault((loop, request), [])
        if step == len(talk):
            talk.append(answer)
    sampled = sorted({loop for loop, _ in by_talk if loop != GREEDY})
    return Turns(by_talk, sampled or [GREEDY])


def greedy_pairs(request: Request, reference: Turns, quantized: Turns) -> Iterator[tuple[int, Answer, Answer]]:
    """Yield (step, reference's answer, quantized model's) of the greedy loop, where both answered."""
    both = zip(reference.greedy(request.id), quantized.greedy(request.id), strict=False)
    for step, (theirs, ours) in enumerate(both):
        if theirs.error is None and ours.error is None:
            yield step, theirs, ours


def rate(requests: Sequence[Request], count: Callable[[Request], tuple[float, float]]) -> Rate:
    """The rate of which `count` says (count, chances) for every request."""
    counted = np.array([count(request) for request in requests], dtype=np.float64).reshape(-1, 2)
    return Rate(counted[:, 0].copy(), counted[:, 1].copy())


def share(requests: Sequence[Request], judge: Callable[[Request], Iterator[bool | None]]) -> Rate:
    """The share of true among what `judge` yields for the requests; None is no chance."""

    def count(request: Request) -> tuple[float, float]:
        judged = [each for each in judge(request) if each is not None]
        return float(sum(judged)), float(len(judged))

    return rate(requests, count)

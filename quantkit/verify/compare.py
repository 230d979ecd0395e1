"""Two captures to figures: what the quantized model says against what the reference says, and against its own noise."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from quantkit.errors import BadInput
from quantkit.verify.capture_file import AGAIN, FIRST, Capture
from quantkit.verify.divergence.figures import Divergence, PassageDivergence, compare_scores
from quantkit.verify.estimates import NORMAL_95, Draws, Interval, Resampler, interval
from quantkit.verify.gate import Figure
from quantkit.verify.metrics import METRICS, SAME, Metric
from quantkit.verify.questions import Questions, questions_from_json
from quantkit.verify.records import Answer, Rate, Request, Scores
from quantkit.verify.tool_calls.metrics import tool_call_rates

if TYPE_CHECKING:
    from quantkit.verify.divergence.program import ProgramDivergence

Answers = dict[tuple[int, str, int], Answer]
PREFIX = "tool_calls."
RULE_OF_THREE = 3


@dataclass(frozen=True)
class TextComparison:
    """The passages that both captures scored: their numbers, both scores, what came out of them."""

    numbers: Sequence[int]
    scores: Sequence[tuple[Scores, Scores]]
    parts: Sequence[PassageDivergence]


@dataclass
class Comparison:
    """Everything that two captures say: `figures` by dotted name, for the gate; all values and their spreads beside."""

    questions: Questions
    figures: dict[str, Figure] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, Interval] = field(default_factory=dict)
    domains: dict[str, dict[str, float]] = field(default_factory=dict)
    categories: dict[str, dict[str, float]] = field(default_factory=dict)
    texts: TextComparison | None = None
    answers: tuple[Answers, Answers] | None = None
    by_program: bool = False

    def add_program(self, found: ProgramDivergence) -> None:
        """Take the divergence from what llama-perplexity printed."""
        self.by_program = True
        self.figures |= found.figures
        self.values |= found.values
        self.domains |= found.domains


def compare_captures(reference: Capture, quantized: Capture, *, seed: int = 0) -> Comparison:
    """Hold two captures of the same questions against each other. Raises BadInput where they have different ones."""
    if reference.about("identity")["questions"] != quantized.about("identity")["questions"]:
        raise BadInput(
            f"{quantized.path}: was asked other questions than {reference.path}; capture it with --reference "
            f"{reference.path.name}"
        )
    history = quantized.about("identity")["history"]
    if history not in (None, reference.about("id")):
        raise BadInput(
            f"{quantized.path}: was asked on the answers of another capture than {reference.path}; give that one, or "
            "capture it again"
        )
    found = Comparison(questions_from_json(reference.about("questions")))
    found.texts = _shared_texts(found.questions, reference, FIRST, quantized, FIRST)
    if found.texts is not None:
        noise = _shared_texts(found.questions, reference, FIRST, reference, AGAIN)
        _add_divergence(found, found.texts, noise, seed)
    mine, theirs = _answers(reference, FIRST), _answers(quantized, FIRST)
    if mine and theirs:
        _add_tool_calls(found, mine, _answers(reference, AGAIN), theirs, seed)
    return found


def compare_answers(
    questions: Questions, first: Answers, again: Answers, theirs: Answers, *, seed: int = 0
) -> Comparison:
    """Hold the quantized model's answers against the reference's `first`, whose noise `again` shows."""
    found = Comparison(questions)
    _add_tool_calls(found, first, again, theirs, seed)
    return found


def pairwise(left: Capture, right: Capture) -> dict[str, float | str] | None:
    """What two captures of the same questions say of the same tokens; None where they share none."""
    texts = _shared_texts(questions_from_json(left.about("questions")), left, FIRST, right, FIRST)
    if texts is None:
        return None
    values = {
        name: value
        for name, (value, _) in Divergence(texts.parts, Resampler(len(texts.parts), draws=1)).values().items()
    }
    return {
        "left": _named(left),
        "right": _named(right),
        "ppl_left": values["ppl.reference"],
        "ppl_right": values["ppl.quantized"],
        "kld_mean": values["kld.mean"],
        "same_top1": values["same_top1"],
    }


def _named(capture: Capture) -> str:
    return f"{capture.about('identity')['model']['name']} on {capture.about('server')['engine']}"


def _shared_texts(
    questions: Questions, left: Capture, left_run: str, right: Capture, right_run: str
) -> TextComparison | None:
    both = set(left.scored_passages(left_run)) & set(right.scored_passages(right_run))
    numbers = sorted(both)
    pairs = []
    for number in numbers:
        a, b = left.scores(left_run, number), right.scores(right_run, number)
        assert a is not None
        assert b is not None
        if len(a.actual) != questions.passages[number].scored or len(a.actual) != len(b.actual):
            raise BadInput(f"{right.path}: passage {number} has scores of another length; capture it again")
        pairs.append((a, b))
    if not pairs:
        return None
    return TextComparison(numbers, pairs, [compare_scores(a, b) for a, b in pairs])


def _add_divergence(found: Comparison, texts: TextComparison, noise: TextComparison | None, seed: int) -> None:
    whole = Divergence(texts.parts, Resampler(len(texts.parts), seed=seed))
    own = Divergence(noise.parts, Resampler(len(noise.parts), draws=1)).values() if noise else {}
    found.figures["finite"] = Figure(1 - whole.not_finite / whole.scored)
    found.values |= {"scored_tokens": whole.scored, "top": texts.scores[0][1].top_ids.shape[1]}
    for name, (value, draws) in whole.values().items():
        found.values[name] = value
        spread = interval(draws, len(texts.parts)) if draws is not None else None
        if spread is not None:
            found.spreads[name] = spread
        if name not in METRICS:
            continue
        itself = own[name][0] if name in own else None
        distance = abs(itself - SAME[name]) if itself is not None and math.isfinite(itself) else None
        found.figures[name] = Figure(value, spread, itself, None, distance)
    domains = [found.questions.passages[number].domain for number in texts.numbers]
    for domain in dict.fromkeys(domains):
        parts = [part for part, of in zip(texts.parts, domains, strict=True) if of == domain]
        there = Divergence(parts, Resampler(len(parts), seed=seed, draws=1))
        found.domains[domain] = {name: value for name, (value, _) in there.values().items()}
        found.domains[domain]["scored_tokens"] = there.scored


def _answers(capture: Capture, run: str) -> Answers:
    return {(loop, request, step): answer for loop, request, step, answer in capture.answers(run)}


def _add_tool_calls(found: Comparison, first: Answers, again: Answers, theirs: Answers, seed: int) -> None:
    found.answers = first, theirs
    requests = found.questions.requests
    resampler = Resampler(len(requests), seed=seed)
    against = tool_call_rates(requests, first, theirs)
    itself = tool_call_rates(requests, first, again) if again else {}
    mine = tool_call_rates(requests, first, first)
    for short, rate in against.items():
        name = PREFIX + short
        if name not in METRICS or math.isnan(rate.value):  # nothing was asked that it could be counted on
            continue
        found.figures[name] = _figure(name, rate, mine[short], itself.get(short), resampler)
        found.values[name] = rate.value
    for category in dict.fromkeys(request.category for request in requests):
        inside = [request for request in requests if request.category == category]
        found.categories[category] = _values(inside, first, theirs)


def _values(requests: Sequence[Request], first: Answers, theirs: Answers) -> dict[str, float]:
    rates = tool_call_rates(requests, first, theirs)
    return {name: rate.value for name, rate in rates.items() if not math.isnan(rate.value)}


def _pooled(first: Rate, again: Rate | None) -> Rate:
    """Both measurements of the reference as one."""
    if again is None:
        return first
    return Rate(first.counts + again.counts, first.chances + again.chances)


def _figure(name: str, rate: Rate, first: Rate, again: Rate | None, resampler: Resampler) -> Figure:
    """A metric of the quantized model beside the reference's: `first` its own, `again` that of its second answers."""
    metric = METRICS[name]
    held = _pooled(first, again) if metric.own else again
    draws = resampler.ratio(rate)
    spread = None if metric.hard else interval(draws, resampler.units)
    if held is None or math.isnan(held.value):
        return Figure(rate.value, spread)
    lost: Draws = metric.better * (resampler.ratio(held) - draws) + 0.0  # no negative zero
    point = metric.better * (held.value - rate.value) + 0.0
    loss = interval(np.full(2, point), 2) if metric.hard else interval(lost, resampler.units)
    return Figure(rate.value, spread, held.value, loss, _noise(metric, first, again, resampler))


def _noise(metric: Metric, first: Rate, again: Rate | None, resampler: Resampler) -> float | None:
    """What two measurements of the reference may differ by, by chance: half the width of a 95 % interval.

    For a comparison that of the second against the first. For drawn answers that of two binomial rates with the pooled
    share, which says more than one pair of measurements; where nothing ever failed in n answers, 3 of n still may
    ("rule of three", Hanley and Lippman-Hand 1983).
    """
    if again is None:
        return None
    if not metric.own:
        apart = interval(resampler.ratio(again), resampler.units)
        return (apart.high - apart.low) / 2 if math.isfinite(apart.high) else None
    pooled, chances = _pooled(first, again), float(first.chances.sum())
    if not chances:
        return None
    share = min(max(pooled.value, 0.0), 1.0)
    reach = NORMAL_95 * math.sqrt(2 * share * (1 - share) / chances)
    return max(reach, RULE_OF_THREE / float(pooled.chances.sum()))


def flat_to_tree(values: dict[str, float]) -> dict[str, float | dict[str, float]]:
    """Dotted names to one level of nesting, as report.json has them."""
    tree: dict[str, float | dict[str, float]] = {}
    for name, value in values.items():
        head, _, rest = name.partition(".")
        if rest:
            branch = tree.setdefault(head, {})
            assert isinstance(branch, dict), json.dumps(name)
            branch[rest] = value
        else:
            tree[head] = value
    return tree

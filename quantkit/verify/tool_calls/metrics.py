"""The metrics of tool-call fidelity: two models' answers to the same requests in, one Rate per metric out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from quantkit.verify.records import Answer, Call, Rate, Request
from quantkit.verify.tool_calls.answers import (
    STRIPPED,
    Answers,
    Turns,
    greedy_pairs,
    rate,
    share,
    turns_of,
)
from quantkit.verify.tool_calls.arguments import is_valid, parameter_matches, same_calls, same_names
from quantkit.verify.tool_calls.ask import PARSER_ERROR
from quantkit.verify.tool_calls.dialogue import reached_goal
from quantkit.verify.tool_calls.judgements import (
    degenerate,
    failed_parsing,
    only_reasoning,
    streamed_alike,
    thinking_is_whole,
)
from quantkit.verify.tool_calls.languages import follows

Requests = Sequence[Request]


def tool_call_rates(requests: Requests, reference: Answers, quantized: Answers) -> dict[str, Rate]:
    """Every metric by name; those of one model are the quantized one's. A category's: give its requests alone."""
    theirs, ours = turns_of(reference), turns_of(quantized)
    rates = {name: metric(requests, ours) for name, metric in OF_ONE.items()}
    return rates | {name: metric(requests, theirs, ours) for name, metric in OF_TWO.items()}


# Comparisons, greedy and answer by answer.


def trigger_f1(requests: Requests, theirs: Turns, ours: Turns) -> Rate:
    """F1 of ending in calls, the reference as truth: 2 TP over 2 TP + FP + FN."""

    def count(request: Request) -> tuple[float, float]:
        pairs = [(left.triggered, right.triggered) for _, left, right in greedy_pairs(request, theirs, ours)]
        return float(2 * pairs.count((True, True))), float(sum(left + right for left, right in pairs))

    return rate(requests, count)


def tool_name_match(requests: Requests, theirs: Turns, ours: Turns) -> Rate:
    """Turns with the same tools called equally often, of those where both call."""
    return share(requests, lambda request: (same_names(left, right) for left, right in _calls(request, theirs, ours)))


def arg_exact(requests: Requests, theirs: Turns, ours: Turns) -> Rate:
    """Turns with the same calls, arguments as canonical JSON, of those where both call."""
    return share(requests, lambda request: (same_calls(left, right) for left, right in _calls(request, theirs, ours)))


def arg_match(requests: Requests, theirs: Turns, ours: Turns) -> Rate:
    """Parameters that agree when strings are normalized as BFCL does, of all parameters where both call."""

    def count(request: Request) -> tuple[float, float]:
        found = [parameter_matches(left, right) for left, right in _calls(request, theirs, ours)]
        return float(sum(agreeing for agreeing, _ in found)), float(sum(total for _, total in found))

    return rate(requests, count)


def call_count_cos(requests: Requests, theirs: Turns, ours: Turns) -> Rate:
    """Cosine of the histograms of calls per turn with calls, mean over the requests where both call."""

    def count(request: Request) -> tuple[float, float]:
        left, right = _call_counts(request, theirs), _call_counts(request, ours)
        return (cosine(left, right), 1.0) if left and right else (0.0, 0.0)

    return rate(requests, count)


def prompt_tokens_equal(requests: Requests, theirs: Turns, ours: Turns) -> Rate:
    """Answers to the same messages whose prompt had the same number of tokens."""

    def judge(request: Request) -> Iterator[bool | None]:
        for _, left, right in greedy_pairs(request, theirs, ours):
            told = left.prompt_tokens is not None and right.prompt_tokens is not None
            yield left.prompt_tokens == right.prompt_tokens if told else None

    return share(requests, judge)


# One model.


def query_success(requests: Requests, ours: Turns) -> Rate:
    """Questions that got an answer, in all loops and controls."""
    return share(
        requests,
        lambda request: (
            answer.error is None and answer.finish_reason != PARSER_ERROR for answer in ours.everything(request.id)
        ),
    )


def match_rate(requests: Requests, ours: Turns) -> Rate:
    """First answers that end in calls where the label wants one, and in nothing else where it wants none."""
    return share(
        requests,
        lambda request: (
            first.finish_reason == ("tool_calls" if request.label else "stop")
            for first in _firsts(request, ours)
            if request.label is not None
        ),
    )


def schema_accuracy(requests: Requests, ours: Turns) -> Rate:
    """Turns ended by calls in which every call names an offered tool and has arguments that fit its schema."""

    def judge(request: Request) -> Iterator[bool]:
        for answer in _answered(request, ours):
            if answer.triggered:
                yield bool(answer.calls) and all(is_valid(call, request.tools) for call in answer.calls)

    return share(requests, judge)


def expected_exact(requests: Requests, ours: Turns) -> Rate:
    """First answers with exactly the expected calls, of the requests that state them."""
    return share(
        requests,
        lambda request: (
            first.error is None and same_calls(first.calls, request.expected or ())
            for first in _firsts(request, ours)
            if request.expected is not None
        ),
    )


def parser_fail(requests: Requests, ours: Turns) -> Rate:
    """Answers in which a call was lost or came out useless."""
    return share(requests, lambda request: (failed_parsing(a, request.tools) for a in _answered(request, ours)))


def think_integrity(requests: Requests, ours: Turns) -> Rate:
    """Answers with one closed block of thinking, not empty, before everything else."""
    return share(
        requests,
        lambda request: (
            thinking_is_whole(a, request.tools) for a in _answered(request, ours) if a.finish_reason != PARSER_ERROR
        ),
    )


def reasoning_only(requests: Requests, ours: Turns) -> Rate:
    """Answers of thinking alone."""
    return share(requests, lambda request: (only_reasoning(a) for a in _answered(request, ours)))


def stream_parity(requests: Requests, ours: Turns) -> Rate:
    """Greedy answers that are the same read from a stream."""
    return share(requests, lambda request: (streamed_alike(a) for a in ours.greedy(request.id) if a.error is None))


def interleaved_success(requests: Requests, ours: Turns) -> Rate:
    """Multi-turn loops that reached their goal. Without sampling loops: whose last step, on the history, does."""
    return share(requests, lambda request: _goals(request, ours, request.id))


def interleaved_control(requests: Requests, ours: Turns) -> Rate:
    """The same of the loops in which reasoning was not sent back."""
    return share(requests, lambda request: _goals(request, ours, request.id + STRIPPED))


def interleaved_thinking(requests: Requests, ours: Turns) -> Rate:
    """Turns of multi-turn loops with thinking."""
    return share(
        requests, lambda request: (bool(answer.reasoning) for answer in _answered(request, ours) if request.mock)
    )


def interleaved_turns(requests: Requests, ours: Turns) -> Rate:
    """Turns per multi-turn loop."""

    def count(request: Request) -> tuple[float, float]:
        talks = list(ours.talks(request.id)) if request.mock else []
        return float(sum(map(len, talks))), float(len(talks))

    return rate(requests, count)


def reasoning_echoed(requests: Requests, ours: Turns) -> Rate:
    """Second prompts of a loop that are longer than the control's, whose history lacks nothing but the reasoning."""

    def judge(request: Request) -> Iterator[bool | None]:
        for loop in ours.loops:
            loop_itself = ours.by_talk.get((loop, request.id), ())
            control = ours.by_talk.get((loop, request.id + STRIPPED), ())
            if len(loop_itself) > 1 and len(control) > 1 and loop_itself[0].reasoning:
                longer, shorter = loop_itself[1].prompt_tokens, control[1].prompt_tokens
                yield None if longer is None or shorter is None else longer > shorter

    return share(requests, judge)


def degeneration(requests: Requests, ours: Turns) -> Rate:
    """Answers that repeat themselves or fall into another script."""
    return share(requests, lambda request: (degenerate(answer, request) for answer in _answered(request, ours)))


def abstention(requests: Requests, ours: Turns) -> Rate:
    """First answers without a call, of the requests that no tool fits."""
    return share(
        requests,
        lambda request: (
            first.error is None and first.finish_reason == "stop" and not first.calls
            for first in _firsts(request, ours)
            if request.label is False
        ),
    )


def language_following(requests: Requests, ours: Turns) -> Rate:
    """Answers with text that are in the language asked for, of the requests that ask for one."""

    def judge(request: Request) -> Iterator[bool | None]:
        if request.language:
            for answer in _answered(request, ours):
                yield follows(answer.content, request.language)

    return share(requests, judge)


OF_TWO: dict[str, Callable[[Requests, Turns, Turns], Rate]] = {
    metric.__name__: metric
    for metric in (trigger_f1, tool_name_match, arg_exact, arg_match, call_count_cos, prompt_tokens_equal)
}
OF_ONE: dict[str, Callable[[Requests, Turns], Rate]] = {
    metric.__name__: metric
    for metric in (
        query_success,
        match_rate,
        schema_accuracy,
        expected_exact,
        parser_fail,
        think_integrity,
        reasoning_only,
        stream_parity,
        interleaved_success,
        interleaved_control,
        interleaved_thinking,
        interleaved_turns,
        reasoning_echoed,
        degeneration,
        abstention,
        language_following,
    )
}


def cosine(left: Counter[int], right: Counter[int]) -> float:
    """Cosine of two histograms, 0 for an empty one."""
    product = sum(count * right[key] for key, count in left.items())
    lengths = sum(c * c for c in left.values()) * sum(c * c for c in right.values())
    return float(product / lengths**0.5) if lengths else 0.0


def _firsts(request: Request, turns: Turns) -> Iterator[Answer]:
    return (talk[0] for talk in turns.talks(request.id))


def _answered(request: Request, turns: Turns) -> Iterator[Answer]:
    return (answer for talk in turns.talks(request.id) for answer in talk if answer.error is None)


def _calls(request: Request, theirs: Turns, ours: Turns) -> Iterator[tuple[Sequence[Call], Sequence[Call]]]:
    for _, left, right in greedy_pairs(request, theirs, ours):
        if left.triggered and right.triggered:
            yield left.calls, right.calls


def _call_counts(request: Request, turns: Turns) -> Counter[int]:
    return Counter(len(answer.calls) for answer in _answered(request, turns) if answer.triggered)


def _goals(request: Request, turns: Turns, talk_id: str) -> Iterator[bool]:
    if request.mock:
        for talk in turns.talks(talk_id):
            yield reached_goal(request, talk)

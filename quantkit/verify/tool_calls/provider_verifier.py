"""MiniMax's own figures, with the definitions of MiniMax-Provider-Verifier, from the same answers.

They differ from our metrics where its definitions do: thinking alone counts whatever the finish reason; an array-valued
command must be split into words; language following looks for Cyrillic letters only; the similarity of triggers is
that of sampled answers. First answers count: its requests have one step. Rates are over all loops together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from quantkit.verify.records import Answer, Call, Request
from quantkit.verify.tool_calls.answers import Answers, Turns, turns_of
from quantkit.verify.tool_calls.arguments import is_valid, parameters_of, read_arguments
from quantkit.verify.tool_calls.ask import PARSER_ERROR
from quantkit.verify.tool_calls.languages import CYRILLIC, scripts_in, scripts_of_language
from quantkit.verify.tool_calls.metrics import cosine

_SHELLS = {folder + name for folder in ("", "/bin/", "/usr/bin/") for name in ("bash", "sh", "zsh")}
_LOGIN = {"-l", "--login"}
_SCRIPT = {"-c", "-lc"}
# Programs that the check knows: an array whose element is a whole command line of one cannot be executed.
_KNOWN = "ls cat git npm npx cd cp mv rm mkdir chmod chown find grep curl wget pip"
_PROGRAMS = tuple(f"{name} " for name in _KNOWN.split())

First = tuple[Request, Answer]


def provider_verifier_figures(
    requests: Sequence[Request], reference: Answers, quantized: Answers
) -> dict[str, dict[str, float]]:
    """The figures of both sides by name; those without a single case are left out, similarities are Q's to R."""
    theirs, ours = turns_of(reference), turns_of(quantized)
    similar = {
        "trigger_similarity": _trigger_similarity(requests, theirs, ours),
        "multi_trigger_similarity": cosine(_call_counts(requests, theirs), _call_counts(requests, ours)),
    }
    sides = {"reference": _figures(requests, theirs), "quantized": _figures(requests, ours) | similar}
    return {side: {name: value for name, value in one.items() if value is not None} for side, one in sides.items()}


def _figures(requests: Sequence[Request], turns: Turns) -> dict[str, Any]:
    firsts = list(_firsts(requests, turns))
    return {name: _share(map(judge, firsts)) for name, judge in _FIGURES.items()}


def _share(judged: Iterator[bool | None]) -> float | None:
    cases = [each for each in judged if each is not None]
    return sum(cases) / len(cases) if cases else None


def _succeeded(first: First) -> bool:
    return first[1].error is None and first[1].finish_reason != PARSER_ERROR


def _matches(first: First) -> bool | None:
    request, answer = first
    if request.label is None:
        return None
    return answer.finish_reason == ("tool_calls" if request.label else "stop")


def _schema_fits(first: First) -> bool | None:
    request, answer = first
    if not answer.triggered:
        return None
    return bool(answer.calls) and all(_call_fits(call, request) for call in answer.calls)


def _only_reasoning(first: First) -> bool:
    answer = first[1]
    return bool(answer.reasoning) and not answer.content and not answer.calls


def _no_cyrillic(first: First) -> bool | None:
    request, answer = first
    if request.language is None or not answer.content or CYRILLIC in scripts_of_language(request.language):
        return None
    return CYRILLIC not in scripts_in(answer.content)


_FIGURES: dict[str, Callable[[First], bool | None]] = {
    "query_success": _succeeded,
    "match_rate": _matches,
    "schema_accuracy": _schema_fits,
    "reasoning_only": _only_reasoning,
    "language_following": _no_cyrillic,
}


def _call_fits(call: Call, request: Request) -> bool:
    # Its validator takes a tool without parameters for an unknown one.
    return bool(parameters_of(request.tools, call.name)) and is_valid(call, request.tools) and _splits(call, request)


def _splits(call: Call, request: Request) -> bool:
    """Whether a `command` that is an array of strings by its schema is a program and its arguments, one by one."""
    schema = (parameters_of(request.tools, call.name) or {}).get("properties", {}).get("command")
    if not isinstance(schema, dict) or schema.get("type") != "array":
        return True
    if (schema.get("items") or {}).get("type") != "string":
        return True
    command = (read_arguments(call) or {}).get("command")
    return isinstance(command, list) and is_split_command(command)


def is_split_command(command: Sequence[str]) -> bool:
    """Whether every element of a command is one word, unless a shell is given a script."""
    if not command:
        return False
    if len(command) >= 3 and command[0] in _SHELLS:
        options = [word for word in command[1:] if word not in _LOGIN]
        if options and options[0] in _SCRIPT:
            return True
    if len(command) == 1 and " " in command[0]:
        return False
    return not any(word.startswith(_PROGRAMS) for word in command)


def _trigger_similarity(requests: Sequence[Request], theirs: Turns, ours: Turns) -> float | None:
    """F1 of ending in calls over the pairs of one request and loop; a failed request did not."""
    pairs = [
        (left[0].triggered, right[0].triggered)
        for request in requests
        for loop in ours.loops
        if (left := theirs.by_talk.get((loop, request.id))) and (right := ours.by_talk.get((loop, request.id)))
    ]
    marked = sum(left + right for left, right in pairs)
    return 2 * pairs.count((True, True)) / marked if marked else None


def _call_counts(requests: Sequence[Request], turns: Turns) -> Counter[int]:
    return Counter(len(answer.calls) for _, answer in _firsts(requests, turns) if answer.triggered)


def _firsts(requests: Sequence[Request], turns: Turns) -> Iterator[First]:
    for request in requests:
        for talk in turns.talks(request.id):
            yield request, talk[0]

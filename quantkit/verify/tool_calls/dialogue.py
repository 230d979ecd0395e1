"""The loop of a multi-turn request: what is sent next, and when it is over.

Everything here is a function of the request and the answers so far, so that a loop can be played again: to go on with
an interrupted one, and to ask another model on the same history.
"""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.verify.records import Answer, Message, MockTools, Request
from quantkit.verify.tool_calls.arguments import holds, read_arguments


def conversation(request: Request, answers: Sequence[Answer], *, with_reasoning: bool = True) -> list[Message]:
    """The messages of the step after `answers`: those of the request, then each answer with its tools' results.

    Reasoning is sent back as interleaved thinking needs it, unless it is to be left out.
    """
    messages = list(request.messages)
    for step, answer in enumerate(answers):
        messages += _turns(request, step, answer, with_reasoning)
    return messages


def is_over(request: Request, answers: Sequence[Answer]) -> bool:
    """Whether nothing more is to be asked: an answer without calls, a failed or useless one, enough."""
    if request.mock is None or not answers:
        return bool(answers)
    last = answers[-1]
    unusable = any(read_arguments(call) is None for call in last.calls)
    return last.error is not None or not last.calls or unusable or len(answers) >= request.mock.turns


def reached_goal(request: Request, answers: Sequence[Answer]) -> bool:
    """Whether the loop ended in an answer without calls that holds the goal, whatever its case."""
    if request.mock is None or not answers:
        return False
    last = answers[-1]
    if last.error is not None or last.calls or last.finish_reason != "stop":
        return False
    return (request.mock.goal or "").casefold() in last.content.casefold()


def _turns(request: Request, step: int, answer: Answer, with_reasoning: bool) -> list[Message]:
    ids = [f"call_{step}_{number}" for number in range(len(answer.calls))]
    turn: Message = {
        "role": "assistant",
        "content": answer.content,
        "tool_calls": [
            {"id": each, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}
            for each, call in zip(ids, answer.calls, strict=True)
        ],
    }
    if with_reasoning and answer.reasoning:
        turn["reasoning_content"] = answer.reasoning
    mock = request.mock or MockTools(rules=())
    results = [
        {"role": "tool", "tool_call_id": each, "content": _result(mock, call.name, read_arguments(call) or {})}
        for each, call in zip(ids, answer.calls, strict=True)
    ]
    return [turn, *results]


def _result(mock: MockTools, name: str, arguments: dict[str, object]) -> str:
    fitting = (rule for rule in mock.rules if rule.name == name and holds(arguments, rule.arguments))
    return next((rule.result for rule in fitting), mock.otherwise)

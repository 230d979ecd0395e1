"""Where two models answered the same messages differently, for reading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantkit.verify.records import Answer, Request
from quantkit.verify.tool_calls.answers import Answers, greedy_pairs, turns_of
from quantkit.verify.tool_calls.arguments import same_calls

KINDS = ("trigger", "name", "count", "arguments", "content")
"""What differs first, the worst first: whether to call, which tools, how often, with what, or what is said."""


def differences(requests: Sequence[Request], reference: Answers, quantized: Answers) -> list[dict[str, Any]]:
    """Both answers of every greedy step that differs, worst kinds first, then in the order of the requests.

    Thinking alone may differ. `prompt` is the text of the last user's turn.
    """
    theirs, ours = turns_of(reference), turns_of(quantized)
    found = []
    for request in requests:
        for step, left, right in greedy_pairs(request, theirs, ours):
            kind = _kind(left, right)
            if kind is not None:
                found.append(
                    {
                        "request": request.id,
                        "step": step,
                        "category": request.category,
                        "prompt": _last_user_text(request),
                        "kind": kind,
                        "reference": _shown(left),
                        "quantized": _shown(right),
                    }
                )
    return sorted(found, key=lambda each: KINDS.index(each["kind"]))


def _kind(left: Answer, right: Answer) -> str | None:
    if left.triggered != right.triggered:
        return "trigger"
    if {call.name for call in left.calls} != {call.name for call in right.calls}:
        return "name"
    if len(left.calls) != len(right.calls):
        return "count"
    if not same_calls(left.calls, right.calls):
        return "arguments"
    return "content" if not left.calls and left.content != right.content else None


def _shown(answer: Answer) -> dict[str, Any]:
    calls = [{"name": call.name, "arguments": call.arguments} for call in answer.calls]
    return {"content": answer.content, "reasoning": answer.reasoning, "calls": calls}


def _last_user_text(request: Request) -> str:
    for message in reversed(request.messages):
        if message["role"] == "user":
            content = message.get("content") or ""
            if isinstance(content, str):
                return content
            return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""

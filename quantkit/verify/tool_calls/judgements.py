"""What can be said of one answer: parsed as written, thinking whole, more than thinking, no babble."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from quantkit.verify.records import Answer, Request, Tool
from quantkit.verify.tool_calls.arguments import parameters_of, read_arguments, same_calls
from quantkit.verify.tool_calls.ask import PARSER_ERROR
from quantkit.verify.tool_calls.languages import foreign_scripts
from quantkit.verify.tool_calls.raw_text import END_THINK, END_TURN, INVOKE, ROLE, THINK, WRAPPER, parse_raw

REPEATED = 4
"""So often the same three words in a row make a text degenerate."""
# Words, and every ideograph and kana for itself: they are written without blanks.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def failed_parsing(answer: Answer, tools: Sequence[Tool]) -> bool:
    """Whether a call was lost or came out useless.

    True where the answer was cut off at its limit; a parsed call has an unknown name or arguments that are no object;
    or calls as generated are broken, stand within the thinking, or are more than the server parsed.
    """
    if answer.finish_reason in ("length", PARSER_ERROR):
        return True
    if any(parameters_of(tools, call.name) is None or read_arguments(call) is None for call in answer.calls):
        return True
    if answer.raw is not None:
        raw = parse_raw(answer.raw, tools)
        return bool(raw.problems) or len(raw.calls) > len(answer.calls)
    text = answer.content + answer.reasoning
    return not answer.calls and (WRAPPER in text or INVOKE + " " in text)


def thinking_is_whole(answer: Answer, tools: Sequence[Tool]) -> bool:
    """Whether thinking is there, ends once and before all else, and no tag or role marker is left in the content."""
    if any(mark in answer.content for mark in (THINK, END_THINK, ROLE, END_TURN)):
        return False
    if answer.raw is None:
        return bool(answer.reasoning) and THINK not in answer.reasoning
    raw = parse_raw(answer.raw, tools)
    if (
        raw.thinking is None
        or not raw.thinking.strip()
        or THINK in raw.thinking
        or "call inside thinking" in raw.problems
    ):
        return False
    after = answer.raw.partition(END_THINK)[2].removesuffix(END_TURN)
    # Values of calls are free to hold such text.
    outside = after.partition(WRAPPER)[0]
    return not any(mark in outside for mark in (THINK, END_THINK, ROLE, END_TURN))


def only_reasoning(answer: Answer) -> bool:
    """Whether a finished answer is thinking alone; one cut off at its limit may have been about to go on."""
    return bool(answer.reasoning) and not answer.content and not answer.calls and answer.finish_reason != "length"


def streamed_alike(answer: Answer) -> bool | None:
    """Whether the answer read from a stream is the same.

    None where there is none, or where the two completions were not the same text as generated: that is the engine's
    arithmetic (no two batches are alike), not its parser.
    """
    streamed = answer.streamed
    if streamed is None:
        return None
    if streamed.error is not None:
        return False
    if answer.raw is not None and streamed.raw is not None and answer.raw != streamed.raw:
        return None
    return (
        streamed.finish_reason == answer.finish_reason
        and streamed.content == answer.content
        and streamed.reasoning == answer.reasoning
        and same_calls(streamed.calls, answer.calls)
    )


def degenerate(answer: Answer, request: Request) -> bool | None:
    """Whether an answer's text repeats itself or falls into a script that nobody used; None where it has no text."""
    text = f"{answer.reasoning}\n{answer.content}"
    if not text.strip():
        return None
    return repeats(text) or bool(foreign_scripts(text, _said_before(request), request.language))


def repeats(text: str) -> bool:
    """Whether three words in a row come REPEATED times."""
    words = _WORD.findall(text.lower())
    return max(Counter(zip(words, words[1:], words[2:], strict=False)).values(), default=0) >= REPEATED


def _said_before(request: Request) -> str:
    """All text that a model saw: messages, tools and what the mock tools may have answered."""
    mock = request.mock
    results = [mock.otherwise, *(rule.result for rule in mock.rules)] if mock else []
    messages = [str(message) for message in request.messages]
    return "\n".join([*messages, *map(str, request.tools), *results])

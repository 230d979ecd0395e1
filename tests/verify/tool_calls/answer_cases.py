"""Short ways to write requests and answers of a test case down."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.verify.records import Answer, Call, Request

PROPERTIES = {"text": {"type": "string"}, "count": {"type": "integer"}, "command": {"type": "array"}}
SCHEMA = {"type": "object", "properties": PROPERTIES, "required": ["text"]}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("f", "g")]


def request(name: str, **fields: Any) -> Request:
    """A request with the tools f and g, which take text, count and command; text is required."""
    return Request(
        **{"id": name, "messages": [{"role": "user", "content": "Go."}], "tools": TOOLS, "category": "c"} | fields
    )


def call(name: str = "f", **arguments: Any) -> Call:
    return Call(name, json.dumps(arguments))


def calling(*calls: Call, **fields: Any) -> Answer:
    """An answer that ends in calls."""
    return Answer(**{"finish_reason": "tool_calls", "reasoning": "Hm.", "calls": calls} | fields)


def saying(content: str = "Done.", **fields: Any) -> Answer:
    """An answer in words."""
    return Answer(**{"finish_reason": "stop", "reasoning": "Hm.", "content": content} | fields)


def answers(loop: int = 0, **by_request: Answer | Sequence[Answer]) -> Mapping[tuple[int, str, int], Answer]:
    """Answers of one loop by request: one, or those of all steps."""
    steps = {name: [given] if isinstance(given, Answer) else given for name, given in by_request.items()}
    return {(loop, name, step): answer for name, given in steps.items() for step, answer in enumerate(given)}

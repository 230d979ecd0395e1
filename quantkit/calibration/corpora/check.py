"""What a chat row must look like before a MiniMax-M2 template may render it.

The template raises for some malformed rows, but renders others wrongly without a word: it skips a system message that
is not the first, and writes a Python list into the text where it wanted a string. Such rows are found here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ROLES = ("system", "user", "assistant", "tool")


def row_problem(value: dict[str, Any]) -> str | None:
    """Why this row cannot be rendered, or None; the same words for the same problem, so that they can be counted."""
    if "messages" in value:
        return _messages_problem(value["messages"]) or _tools_problem(value.get("tools"))
    if not isinstance(value.get("text"), str):
        return "neither a string 'text' nor a list 'messages'"
    return None


def _messages_problem(messages: Any) -> str | None:
    if not isinstance(messages, list):
        return "messages is not a list"
    if not messages:
        return "messages is empty"
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else None
            return f"unknown role {str(role)[:40]!r}; known: {', '.join(ROLES)}"
        problem = _CHECKS[message["role"]](message) or _order_problem(messages, place)
        if problem:
            return problem
    return None


def _order_problem(messages: list[dict[str, Any]], place: int) -> str | None:
    role = messages[place]["role"]
    if role == "system" and place:
        return "system message that is not the first; the template would skip it"
    if role == "tool":
        caller = next(message for message in (*messages[place::-1], {"role": ""}) if message["role"] != "tool")
        if not caller.get("tool_calls"):
            return "tool message without a tool call before it"
    return None


def _text_problem(message: dict[str, Any]) -> str | None:
    if not isinstance(message.get("content"), str):
        return f"content of a {message['role']} message is not a string"
    return None


def _tool_problem(message: dict[str, Any]) -> str | None:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    if parts and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        return None
    return _text_problem(message)


def _assistant_problem(message: dict[str, Any]) -> str | None:
    for key in ("content", "reasoning_content"):
        if not isinstance(message.get(key), str | None):
            return f"{key} of an assistant message is not a string"
    calls = message.get("tool_calls")
    if not calls:
        empty = not message.get("content") and not message.get("reasoning_content")
        return "assistant message with neither text nor tool calls" if empty else None
    if not isinstance(calls, list):
        return "tool_calls is not a list"
    return next((problem for problem in map(_call_problem, calls) if problem), None)


def _call_problem(call: Any) -> str | None:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return "tool call without a function and its name"
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        return "arguments of a tool call is a JSON string; parse it into an object"
    return None if isinstance(arguments, dict) else "arguments of a tool call is not an object"


def _tools_problem(tools: Any) -> str | None:
    if tools is None:
        return None
    if not isinstance(tools, list):
        return "tools is not a list"
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if (
            not isinstance(function, dict)
            or tool.get("type") != "function"
            or not isinstance(function.get("name"), str)
        ):
            return 'tool that is not {"type": "function", "function": {"name": …}}'
    return None


_CHECKS: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "system": _text_problem,
    "user": _text_problem,
    "assistant": _assistant_problem,
    "tool": _tool_problem,
}

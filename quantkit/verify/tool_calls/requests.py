"""Requests for a chat model, read from JSON lines.

One object a line. Ours: `id`, `category`, `messages`, `tools`, `label` (true, false or null: is a call wanted),
`expected` (the right calls, arguments as objects) or null, `mock` (`rules` of `name`, `arguments` that a call has to
hold, and `result`; `otherwise`, `turns`, `goal`) or null, and optionally `language`. MiniMax-Provider-Verifier's:
an OpenAI chat body with `expected_tool_call` and `check_type` beside it. Further fields are passed on to the server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.errors import BadInput
from quantkit.verify.records import Call, Message, MockRule, MockTools, Request, Tool

SHIPPED = Path(__file__).parents[1] / "shipped" / "requests.jsonl"

# Read here, or ours to decide; all other fields go to the server as they are.
_OWN = {"id", "data_index", "category", "messages", "tools", "label", "expected", "mock", "language"}
_VERIFIER = {"expected_tool_call", "should_call_tool", "check_type", "scenario_check"}
_DECIDED = {"model", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"}
# Names under which request files hand over what an assistant thought.
_REASONING = ("reasoning_content", "reasoning", "reason")
_LABELS = ("label", "expected_tool_call", "should_call_tool")
_LANGUAGE_CHECK = "contains_russian_characters_unicode"
_KANA = re.compile("[\u3040-\u30ff]")


class _Wrong(Exception):
    """What is wrong with a line, without the place."""


def shipped_requests() -> list[Request]:
    """The requests that come with quantkit."""
    return read_requests(SHIPPED)


def read_requests(path: Path) -> list[Request]:
    """All requests of a JSON lines file; BadInput names file, line and what is wrong there."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as UTF-8 text ({error}); give a file of JSON lines") from None
    requests: list[Request] = []
    lines_by_id: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            request = _request(json.loads(line), f"{path.stem}-{number}")
            if request.id in lines_by_id:
                raise _Wrong(f"id {request.id!r} was line {lines_by_id[request.id]}'s already; give each its own")
        except ValueError as error:
            raise BadInput(f"{path}, line {number}: no JSON ({error}); each line is one object") from None
        except _Wrong as error:
            raise BadInput(f"{path}, line {number}: {error}") from None
        lines_by_id[request.id] = number
        requests.append(request)
    if not requests:
        raise BadInput(f"{path}: holds no request; each line is one JSON object with messages and tools")
    return requests


def _request(fields: Any, default_id: str) -> Request:
    if not isinstance(fields, dict):
        raise _Wrong("not an object; each line is one JSON object with messages and tools")
    messages = [_message(each, place) for place, each in enumerate(_list(fields, "messages"), 1)]
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise _Wrong("messages have to end with a user's or a tool's turn; cut what follows it")
    tools = [_tool(each, place) for place, each in enumerate(_list(fields, "tools"), 1)]
    names = {tool["function"]["name"] for tool in tools}
    checks = fields.get("check_type") or []
    if not isinstance(checks, list):
        raise _Wrong(f"check_type is {checks!r}; give a list")
    return Request(
        id=_id(fields, default_id),
        messages=messages,
        tools=tools,
        category=_text(fields, "category") or _category(checks),
        label=_label(fields),
        expected=_expected(fields.get("expected"), names),
        mock=_mock(fields.get("mock"), names),
        language=_text(fields, "language") or _language(checks, messages),
        options={name: value for name, value in fields.items() if name not in _OWN | _VERIFIER | _DECIDED},
    )


def _id(fields: Mapping[str, Any], default: str) -> str:
    given = fields.get("id", fields.get("data_index", default))
    if not isinstance(given, str | int) or isinstance(given, bool) or "#" in str(given):
        raise _Wrong(f"id is {given!r}; give a text without #")
    return str(given)


def _label(fields: Mapping[str, Any]) -> bool | None:
    label = next((fields[name] for name in _LABELS if fields.get(name) is not None), None)
    if label is not None and not isinstance(label, bool):
        raise _Wrong(f"label is {label!r}; give true, false or null")
    return label


def _category(checks: Sequence[str]) -> str:
    return "language" if _LANGUAGE_CHECK in checks else "scenario" if "scenario_check" in checks else "requests"


def _language(checks: Sequence[str], messages: Sequence[Message]) -> str | None:
    # The check looks for Cyrillic in answers to Japanese questions; files do not name the language.
    return "ja" if _LANGUAGE_CHECK in checks and _KANA.search(str(messages[-1]["content"])) else None


def _message(fields: Any, place: int) -> Message:
    """A turn as servers take it: thoughts as `reasoning_content`, arguments of calls as JSON text."""
    if not isinstance(fields, dict) or not isinstance(fields.get("role"), str):
        raise _Wrong(f"message {place} is no object with a role")
    message = {name: value for name, value in fields.items() if name not in _REASONING}
    if message["role"] == "_input":  # the Provider-Verifier's word
        message["role"] = "system"
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        raise _Wrong(f"message {place}: content is neither text nor a list of parts")
    if content is None and message["role"] != "assistant":
        raise _Wrong(f"message {place}: a {message['role']}'s turn needs content")
    reasoning = next((fields[name] for name in _REASONING if fields.get(name)), None)
    if reasoning:
        message["reasoning_content"] = reasoning
    if fields.get("tool_calls"):
        message["tool_calls"] = [
            _earlier_call(call, place, number) for number, call in enumerate(_list(fields, "tool_calls"))
        ]
    return message


def _earlier_call(call: Any, place: int, number: int) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _Wrong(f"message {place}: a tool call has no function with a name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise _Wrong(f"message {place}: arguments of {function['name']} are no JSON ({error})") from None
    if not isinstance(arguments, dict):
        raise _Wrong(f"message {place}: arguments of {function['name']} are no object")
    text = json.dumps(arguments, ensure_ascii=False)
    # Servers want an id; the template does not show it.
    named = {"id": call.get("id") or f"call_{place}_{number}", "type": "function"}
    return {**call, **named, "function": {**function, "arguments": text}}


def _tool(tool: Any, place: int) -> Tool:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _Wrong(f'tool {place} is not of the shape {{"type": "function", "function": {{"name": …}}}}')
    if not isinstance(function.get("parameters", {}), dict):
        raise _Wrong(f"tool {place}: parameters are no JSON schema")
    return {**tool, "type": "function"}


def _expected(calls: Any, names: set[str]) -> list[Call] | None:
    if calls is None:
        return None
    if not isinstance(calls, list):
        raise _Wrong("expected is no list of calls")
    return [Call(_offered(call, names), json.dumps(call["arguments"], ensure_ascii=False)) for call in calls]


def _mock(mock: Any, names: set[str]) -> MockTools | None:
    if mock is None:
        return None
    if not isinstance(mock, dict) or not isinstance(mock.get("rules"), list):
        raise _Wrong("mock is no object with rules")
    rules = [MockRule(_offered(rule, names), rule["arguments"], _result(rule.get("result"))) for rule in mock["rules"]]
    turns, goal = mock.get("turns", MockTools.turns), mock.get("goal")
    if not isinstance(turns, int) or turns < 1 or not (goal is None or isinstance(goal, str)):
        raise _Wrong("mock: turns have to be a number of at least 1, the goal a text or null")
    return MockTools(rules, _result(mock.get("otherwise", MockTools.otherwise)), turns, goal)


def _result(result: Any) -> str:
    if not isinstance(result, str):
        raise _Wrong("mock: a result is no text")
    return result


def _offered(call: Any, names: set[str]) -> str:
    """The name of a call in `expected` or a rule, which has to be one of the offered tools."""
    if not isinstance(call, dict) or not isinstance(call.get("arguments"), dict):
        raise _Wrong("a call of expected or mock is no object with name and arguments")
    if call.get("name") not in names:
        raise _Wrong(f"{call.get('name')!r} in expected or mock is none of the offered tools")
    return str(call["name"])


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _Wrong(f"{name} is no list")
    return value


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise _Wrong(f"{name} is {value!r}; give a text")
    return value

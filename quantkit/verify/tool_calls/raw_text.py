"""MiniMax-M2's completions as generated: thinking, content and calls, and what is broken about the calls.

    {thinking}</think>{content}<minimax:tool_call>
    <invoke name="f"><parameter name="k">value</parameter></invoke>
    </minimax:tool_call>[e~[

The prompt has opened <think> already. Values stand between their tags unescaped, strings as they are, everything else
as JSON; so a value ends at the first </parameter> that another parameter or </invoke> follows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.verify.records import Call, Tool

THINK, END_THINK = "<think>", "</think>"
WRAPPER, END_WRAPPER = "<minimax:tool_call>", "</minimax:tool_call>"
INVOKE, END_INVOKE = "<invoke", "</invoke>"
ROLE, END_TURN = "]~b]", "[e~["
_END_PARAMETER = "</parameter>"

_INVOKE_TAG = re.compile(r'<invoke\s+name="([^"]*)"\s*>')
_PARAMETER_TAG = re.compile(r'<parameter\s+name="([^"]*)"\s*>')
_AFTER_VALUE = re.compile(r"</parameter>(?=\s*(?:<parameter\s+name=|</invoke>))")
_ANY_CALL = re.compile(r'<minimax:tool_call>|<invoke\s+name="')
_PIECE = re.compile(r"</minimax:tool_call>|</?invoke\b")
_BLANKS = re.compile(r"\s*")

_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}


@dataclass(frozen=True)
class RawAnswer:
    """A completion taken apart. `thinking` is None where no </think> ends it; then all is in `content`.

    `problems` are what a parser of calls could stumble over, or that makes a call useless.
    """

    thinking: str | None
    content: str
    calls: tuple[Call, ...]
    problems: tuple[str, ...]


def parse_raw(text: str, tools: Sequence[Tool]) -> RawAnswer:
    """Take a completion apart; arguments of a call are typed by its tool's schema."""
    text = text.removesuffix(END_TURN)
    before, closed, after = text.partition(END_THINK)
    thinking = before.removeprefix(THINK) if closed else None
    rest = after if closed else text
    # The prompt has opened the thinking: without its end all of the text is thinking.
    problems = ["call inside thinking"] if _ANY_CALL.search(before) else []
    start = _ANY_CALL.search(rest)
    if start is None:
        problems += ["piece of a call"] if _PIECE.search(rest) else []
        return RawAnswer(thinking, rest.strip(), (), tuple(problems))
    calls, found = _Reader(rest, start.start(), tools).read()
    return RawAnswer(thinking, rest[: start.start()].strip(), tuple(calls), tuple(problems + found))


class _Reader:
    """Reads calls from a position to the end of a text, noting problems; an unfinished call is not returned."""

    def __init__(self, text: str, position: int, tools: Sequence[Tool]) -> None:
        self.text, self.position = text, position
        self.schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
        self.calls: list[Call] = []
        self.problems: list[str] = []

    def read(self) -> tuple[list[Call], list[str]]:
        while start := _ANY_CALL.search(self.text, self.position):
            if start.group() != WRAPPER:
                self.problems.append(f"{INVOKE}> outside of {WRAPPER}")
                self.position = start.start()
                if not self._invoke():
                    break
                continue
            self.position = start.end()
            while self._invoke():
                pass
            if not self._take(END_WRAPPER):
                self.problems.append(f"{WRAPPER} not closed")
                break
        if not self.calls and not self.problems:
            self.problems.append(f"{WRAPPER} without a call")
        return self.calls, self.problems

    def _invoke(self) -> bool:
        """Read one call; False where none follows, or a broken one."""
        tag = self._match(_INVOKE_TAG)
        if tag is None:
            return False
        name = tag.group(1)
        if name not in self.schemas:
            self.problems.append(f"unknown tool {name}")
        arguments: dict[str, Any] = {}
        while parameter := self._match(_PARAMETER_TAG):
            end = self._value_end()
            if end is None:
                self.problems.append("<parameter> not closed")
                return False
            key = parameter.group(1)
            arguments[key] = typed(self.text[self.position : end], _property(self.schemas.get(name, {}), key))
            self.position = end + len(_END_PARAMETER)
        if not self._take(END_INVOKE):
            self.problems.append(f"{INVOKE}> not closed")
            return False
        self.calls.append(Call(name, json.dumps(arguments, ensure_ascii=False)))
        return True

    def _value_end(self) -> int | None:
        found = _AFTER_VALUE.search(self.text, self.position)
        if found:
            return found.start()
        end = self.text.find(_END_PARAMETER, self.position)
        return end if end >= 0 else None

    def _match(self, tag: re.Pattern[str]) -> re.Match[str] | None:
        found = tag.match(self.text, self._after_blanks())
        if found:
            self.position = found.end()
        return found

    def _take(self, tag: str) -> bool:
        begin = self._after_blanks()
        if not self.text.startswith(tag, begin):
            return False
        self.position = begin + len(tag)
        return True

    def _after_blanks(self) -> int:
        blanks = _BLANKS.match(self.text, self.position)
        return blanks.end() if blanks else self.position


def _property(schema: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    properties = schema.get("properties")
    found = properties.get(name) if isinstance(properties, dict) else None
    return found if isinstance(found, dict) else {}


def typed(text: str, schema: Mapping[str, Any]) -> Any:
    """The value that `text` between parameter tags stands for under a property's schema; text where it fits none."""
    types = _types(schema)
    if types == {"string"}:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    fits = not types or any(_is(value, kind) for kind in types - {"string"})
    return value if fits or "string" not in types else text


def _types(schema: Mapping[str, Any]) -> set[str]:
    """Types that a schema allows, empty where it does not say."""
    kind = schema.get("type")
    types = {kind} if isinstance(kind, str) else set(kind) if isinstance(kind, list) else set()
    for choice in ("anyOf", "oneOf"):
        for inner in schema.get(choice) or ():
            types |= _types(inner) if isinstance(inner, dict) else set()
    if not types and schema.get("enum") and all(isinstance(value, str) for value in schema["enum"]):
        types = {"string"}
    return types


def _is(value: Any, kind: str) -> bool:
    if kind in ("integer", "number") and isinstance(value, bool):
        return False
    return kind in _TYPES and isinstance(value, _TYPES[kind])

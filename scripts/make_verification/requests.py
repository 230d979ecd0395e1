"""Requests from requests/*.yaml, one file per category, in the shape that `quantkit verify` reads.

An entry has `tools` (names), optionally `system`, then `user` or a `history` of turns, and `calls` where the right
ones are known: each {tool name: arguments}. A turn is {user: text}, {think: text, say: text, calls: [...]} of the
assistant, or {results: [text, ...]}, one per call before it. `mock` answers the calls of a loop: `rules` of
{tool name: arguments} with `gives`, and the `goal`. `call` says whether any call is right; true without a word of
it where calls or mock are given.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from make_verification.rows import read_folder, read_tools

TURNS = 8  # assistant turns that a loop may take
OTHERWISE = '{"error": "nothing found for these arguments"}'
NO_CALL = ("irrelevance", "no_tools_needed")


def request_rows() -> Iterator[dict[str, Any]]:
    """The shipped requests, one row each."""
    tools = read_tools()
    for category, entries in read_folder("requests").items():
        for number, entry in enumerate(entries, 1):
            row = {
                "id": f"{category}-{number:02d}",
                "category": category,
                "messages": messages(entry, json_arguments=True),
                "tools": [tools[name] for name in entry["tools"]],
                "label": False if category in NO_CALL else entry.get("call", True),
                "expected": [named(call) for call in entry["calls"]] if "calls" in entry else None,
                "mock": _mock(entry.get("mock")),
            }
            yield row | ({"language": entry["language"]} if "language" in entry else {})


def messages(entry: dict[str, Any], *, json_arguments: bool) -> list[dict[str, Any]]:
    """A chat's messages; arguments of calls as JSON text, as clients send them, or as objects, as templates take."""
    made: list[dict[str, Any]] = [{"role": "system", "content": entry["system"]}] if "system" in entry else []
    turns = entry["history"] if "history" in entry else [{"user": entry["user"]}]
    number = 0
    waiting: list[str] = []  # ids of calls without a result
    for turn in turns:
        if "user" in turn:
            made.append({"role": "user", "content": turn["user"]})
        elif "results" in turn:
            if len(turn["results"]) != len(waiting):
                raise ValueError(f"{turn}: {len(waiting)} results wanted")
            made += [
                {"role": "tool", "tool_call_id": call_id, "content": text}
                for call_id, text in zip(waiting, turn["results"], strict=True)
            ]
        else:
            calls = [named(call) for call in turn.get("calls", [])]
            waiting = [f"call_{number + place}" for place in range(1, len(calls) + 1)]
            number += len(calls)
            made.append(_assistant(turn, calls, waiting, json_arguments))
    return made


def _assistant(turn: dict[str, Any], calls: list[dict[str, Any]], ids: list[str], as_json: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": turn.get("say", "")}
    if "think" in turn:
        message["reasoning_content"] = turn["think"]
    if calls:
        message["tool_calls"] = [
            {"id": call_id, "type": "function", "function": {**call, "arguments": _arguments(call, as_json)}}
            for call_id, call in zip(ids, calls, strict=True)
        ]
    return message


def _arguments(call: dict[str, Any], as_json: bool) -> Any:
    return json.dumps(call["arguments"], ensure_ascii=False) if as_json else call["arguments"]


def named(call: dict[str, Any]) -> dict[str, Any]:
    """{"name", "arguments"} of {tool name: arguments}."""
    ((name, arguments),) = call.items()
    return {"name": name, "arguments": arguments or {}}


def _mock(mock: dict[str, Any] | None) -> dict[str, Any] | None:
    if mock is None:
        return None
    rules = []
    for rule in mock["rules"]:
        call = {name: arguments for name, arguments in rule.items() if name != "gives"}
        rules.append({**named(call), "result": rule["gives"]})
    return {"rules": rules, "otherwise": OTHERWISE, "turns": TURNS, "goal": mock["goal"]}

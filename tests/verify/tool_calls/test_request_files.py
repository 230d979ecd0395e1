"""Request files: ours, MiniMax-Provider-Verifier's, and what is wrong with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import BadInput
from quantkit.verify.records import Call, MockRule, MockTools
from quantkit.verify.tool_calls.arguments import is_valid
from quantkit.verify.tool_calls.requests import read_requests, shipped_requests

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
USER = {"role": "user", "content": "Weather in Oslo?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def file(folder: Path, *lines: Any) -> Path:
    path = folder / "asked.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def test_our_own_fields(tmp_path: Path) -> None:
    rule = {"name": "weather", "arguments": {"city": "Oslo"}, "result": "rain"}
    line = {
        "id": "a",
        "category": "single",
        "messages": [USER],
        "tools": [TOOL],
        "label": True,
        "expected": [{"name": "weather", "arguments": {"city": "Oslo"}}],
        "mock": {"rules": [rule], "otherwise": "none", "turns": 3, "goal": "rain"},
        "language": "no",
        "tool_choice": "auto",
    }
    (request,) = read_requests(file(tmp_path, line, ""))
    assert (request.id, request.category, request.label, request.language) == ("a", "single", True, "no")
    assert request.expected == [Call("weather", '{"city": "Oslo"}')]
    assert request.mock == MockTools([MockRule("weather", {"city": "Oslo"}, "rain")], "none", 3, "rain")
    assert request.options == {"tool_choice": "auto"}


def test_provider_verifier_bodies(tmp_path: Path) -> None:
    thought = {"role": "assistant", "content": None, "reasoning": "Hm.", "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "rain"}
    body = {"model": "m", "stream": True, "temperature": 1.0, "messages": [{"role": "_input", "content": "Be brief."}]}
    body |= {"expected_tool_call": False, "tools": [TOOL]}
    body["messages"] += [USER, thought, result]
    asked_in_japanese = {"messages": [{"role": "user", "content": "お年玉とは"}]}
    asked_in_japanese |= {"check_type": ["contains_russian_characters_unicode"]}
    first, second = read_requests(file(tmp_path, body, asked_in_japanese))
    assert (first.id, first.category, first.label, first.options) == (
        "asked-1",
        "requests",
        False,
        {"temperature": 1.0},
    )
    assert [message["role"] for message in first.messages] == ["system", "user", "assistant", "tool"]
    assert first.messages[2]["reasoning_content"] == "Hm."
    assert first.messages[2]["tool_calls"][0]["function"]["arguments"] == '{"city": "Oslo"}'
    assert (second.id, second.category, second.language, second.label) == ("asked-2", "language", "ja", None)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "no JSON"),
        ("[]", "not an object"),
        ({"messages": []}, "end with a user's or a tool's turn"),
        ({"messages": [USER, {"role": "assistant", "content": "Yes."}]}, "end with a user's or a tool's turn"),
        ({"messages": [{"content": "x"}]}, "message 1 is no object with a role"),
        ({"messages": [{"role": "user"}]}, "message 1: a user's turn needs content"),
        ({"messages": [{"role": "user", "content": 3}]}, "message 1: content"),
        ({"messages": [USER], "tools": [{"name": "weather"}]}, "tool 1 is not of the shape"),
        ({"messages": [USER], "tools": {}}, "tools is no list"),
        ({"messages": [USER], "label": "yes"}, "label is 'yes'"),
        ({"messages": [USER], "id": "a#b"}, "id is 'a#b'"),
        ({"messages": [USER], "category": 1}, "category is 1"),
        ({"messages": [USER], "tools": [TOOL], "expected": [{"name": "x", "arguments": {}}]}, "none of the offered"),
        ({"messages": [USER], "tools": [TOOL], "expected": [{"name": "weather"}]}, "name and arguments"),
        ({"messages": [USER], "mock": {}}, "mock is no object with rules"),
        ({"messages": [USER], "mock": {"rules": [], "turns": 0}}, "turns have to be"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "{"}}]}, USER]},
            "message 1: arguments of x are no JSON",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: Any, words: str) -> None:
    path = file(tmp_path, {"messages": [USER]}, line)
    with pytest.raises(BadInput) as refused:
        read_requests(path)
    assert str(refused.value).startswith(f"{path}, line 2: ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_ids_have_to_differ_and_files_to_hold_something(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="line 2: id 'a' was line 1's already"):
        read_requests(file(tmp_path, {"id": "a", "messages": [USER]}, {"id": "a", "messages": [USER]}))
    with pytest.raises(BadInput, match="holds no request"):
        read_requests(file(tmp_path, ""))
    with pytest.raises(BadInput, match="cannot be read"):
        read_requests(tmp_path / "none.jsonl")


def test_shipped_requests_are_read_and_their_expected_calls_fit() -> None:
    requests = shipped_requests()
    assert len(requests) >= 120
    for request in requests:
        assert all(is_valid(call, request.tools) for call in request.expected or ()), request.id

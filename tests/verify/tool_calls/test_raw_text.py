"""Raw completions of MiniMax-M2 are taken apart as its template writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from quantkit.verify.tool_calls.raw_text import parse_raw

SCHEMA: dict[str, Any] = {
    "text": {"type": "string"},
    "count": {"type": "integer"},
    "share": {"type": "number"},
    "on": {"type": "boolean"},
    "maybe": {"type": ["string", "null"]},
    "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
    "place": {"type": "object"},
    "items": {"type": "array"},
    "size": {"enum": ["1", "2"]},
    "free": {},
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": SCHEMA}}}]


def written(*parameters: tuple[str, str], name: str = "f") -> str:
    inner = "".join(f'<parameter name="{key}">{value}</parameter>' for key, value in parameters)
    return f'<invoke name="{name}">{inner}</invoke>\n'


def wrapped(*invokes: str) -> str:
    return "\n<minimax:tool_call>\n" + "".join(invokes) + "</minimax:tool_call>"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("text", "two\nlines\n", "two\nlines\n"),
        ("text", "\nbegins with one", "\nbegins with one"),
        ("text", 'a "quote" and a \\', 'a "quote" and a \\'),
        ("text", "<b>bold</b> & <parameter> &lt;", "<b>bold</b> & <parameter> &lt;"),
        ("text", "ends in </parameter> text", "ends in </parameter> text"),
        ("text", "</invoke> and <think>", "</invoke> and <think>"),
        ("text", "", ""),
        ("text", "007", "007"),
        ("text", "true", "true"),
        ("text", '{"a": 1}', '{"a": 1}'),
        ("text", "naïve 日本 🙂", "naïve 日本 🙂"),
        ("count", "7", 7),
        ("count", "seven", "seven"),
        ("share", "0.5", 0.5),
        ("share", "2", 2),
        ("on", "false", False),
        ("maybe", "null", None),
        ("maybe", "12", "12"),
        ("either", "12", 12),
        ("either", "twelve", "twelve"),
        ("place", '{"a": {"b": [1, {"c": null}]}}', {"a": {"b": [1, {"c": None}]}}),
        ("items", '["a, b", ["c"]]', ["a, b", ["c"]]),
        ("size", "1", "1"),
        ("free", "12", 12),
        ("free", "plain", "plain"),
        ("unknown", "[1]", [1]),
    ],
)
def test_values_are_typed_by_the_schema(key: str, text: str, value: Any) -> None:
    raw = parse_raw("Thought.</think>" + wrapped(written((key, text))), TOOLS)
    assert raw.problems == ()
    assert [json.loads(call.arguments) for call in raw.calls] == [{key: value}]


def test_thinking_content_and_several_calls_of_one_wrapper_are_told_apart() -> None:
    text = "One.\nTwo.\n</think>\n\nI look." + wrapped(written(("count", "1")), written(("count", "2"))) + "[e~["
    raw = parse_raw(text, TOOLS)
    assert (raw.thinking, raw.content, raw.problems) == ("One.\nTwo.\n", "I look.", ())
    assert [(call.name, call.arguments) for call in raw.calls] == [("f", '{"count": 1}'), ("f", '{"count": 2}')]


def test_calls_in_two_wrappers_and_without_parameters_are_read() -> None:
    raw = parse_raw("T</think>" + wrapped(written()) + wrapped(written(("on", "true"))), TOOLS)
    assert [call.arguments for call in raw.calls] == ["{}", '{"on": true}']


def test_text_without_calls_has_none() -> None:
    raw = parse_raw("T</think>Use a < b and <invoice>.", TOOLS)
    assert (raw.content, raw.calls, raw.problems) == ("Use a < b and <invoice>.", (), ())


@pytest.mark.parametrize(
    ("text", "problem", "calls"),
    [
        ("T</think>" + wrapped(written(("on", "true")))[: -len("</minimax:tool_call>")], "tool_call> not closed", 1),
        ('T</think><minimax:tool_call>\n<invoke name="f"><parameter name="text">a', "<parameter> not closed", 0),
        ('T</think><minimax:tool_call>\n<invoke name="f">\n', "<invoke> not closed", 0),
        ("T</think><minimax:tool_call>\n", "not closed", 0),
        ("T</think><minimax:tool_call></minimax:tool_call>", "without a call", 0),
        ("T</think>" + wrapped(written(name="g")), "unknown tool g", 1),
        ("T</think>" + written(("on", "true")), "outside of <minimax:tool_call>", 1),
        ("T " + wrapped(written()) + "</think>", "call inside thinking", 0),
        ("T " + wrapped(written()), "call inside thinking", 1),
        ("T</think>\ninvoke>\n</minimax:tool_call>", "piece of a call", 0),
        ("T</think>\n<invoke f>", "piece of a call", 0),
    ],
)
def test_problems_are_named(text: str, problem: str, calls: int) -> None:
    raw = parse_raw(text, TOOLS)
    assert any(problem in each for each in raw.problems), raw.problems
    assert len(raw.calls) == calls


def test_what_the_template_writes_is_read_back(tiny_m2: Path) -> None:
    """The fixture's chat template, rendered by transformers, is the other side."""
    arguments = {
        "text": 'x\n"y" <z/>',
        "count": 3,
        "place": {"a": ["ü", None, True]},
        "items": [],
        "free": "",
        "on": False,
    }
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    turn = {"role": "assistant", "reasoning_content": "Hm.", "content": "Now.", "tool_calls": [call, call]}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_m2)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Go."}, turn], tools=TOOLS, tokenize=False)
    completion = text.split("]~b]ai\n<think>\n")[1].rstrip("\n")
    raw = parse_raw(completion, TOOLS)
    assert (raw.thinking, raw.content, raw.problems) == ("Hm.\n", "Now.", ())
    assert [json.loads(each.arguments) for each in raw.calls] == [arguments, arguments]

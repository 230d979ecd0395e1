"""Chats get exactly the ids that transformers gives them; rows that a template must not see are named."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import jinja2
import pytest
from corpus_files import FIXTURE, TOKENIZER, TOOL, calls, chat, lines_of, result, says, user
from transformers import AutoTokenizer

from quantkit.calibration.corpora.render import RejectedRow, load_tokenizer
from quantkit.calibration.corpora.rows import Row
from quantkit.errors import BadInput

# The parts of m27-checkpoint.md section 7 that raise or skip, written anew: a second opinion on every shipped row.
SECOND_TEMPLATE = """
{%- macro text(content) -%}
{{ content if content is string else raise_exception('content is no string') }}
{%- endmacro -%}
{%- set start = 1 if messages[0].role == 'system' else 0 -%}
{%- set ns = namespace(last_user=-1, name=none) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last_user = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for tool in tools or [] -%}<tool>{{ tool.function | tojson }}</tool>{%- endfor -%}
{%- for m in messages[start:] -%}
{%- if m.role == 'assistant' -%}
<think>{{ m.reasoning_content if loop.index0 + start > ns.last_user }}</think>{{ text(m.content) }}
{%- for call in m.tool_calls or [] -%}
{%- for k, v in call.function.arguments.items() -%}{{ k }}={{ v if v is string else v | tojson }}{%- endfor -%}
{%- endfor -%}
{%- set ns.name = m.tool_calls[-1].function.name if m.tool_calls else none -%}
{%- elif m.role == 'tool' -%}
{{ text(m.content) if ns.name is not none else raise_exception('tool message without a call') }}
{%- elif m.role == 'user' -%}{{ text(m.content) }}
{%- else -%}{{ raise_exception('role ' ~ m.role) }}{%- endif -%}
{%- endfor -%}
"""


@functools.cache
def second_template() -> jinja2.Template:
    def fail(message: str) -> None:
        raise ValueError(message)

    environment = jinja2.Environment(undefined=jinja2.ChainableUndefined)
    environment.globals["raise_exception"] = fail
    return environment.from_string(SECOND_TEMPLATE)


def second_opinion(row: Row) -> str:
    return second_template().render(**row.value)


def held_out() -> list[Row]:
    return [Row(value, "held out") for value in lines_of(FIXTURE / "heldout" / "dialogues.jsonl")]


def test_ids_are_those_of_transformers() -> None:
    oracle = AutoTokenizer.from_pretrained(FIXTURE)
    for row in held_out():
        value = row.value
        expected = oracle.apply_chat_template(value["messages"], tools=value["tools"], tokenize=True)["input_ids"]
        assert TOKENIZER.encode(row) == expected


def test_marks_are_single_tokens() -> None:
    ids = TOKENIZER.encode(chat(user(), calls({"n": 3}, reasoning_content="Think."), result(), tools=[TOOL]))
    special = {name: TOKENIZER.tokenizer.convert_tokens_to_ids(name) for name in ("]~!b[", "]~b]", "[e~[", "<think>")}
    assert ids[0] == special["]~!b["]
    assert ids.count(special["]~b]"]) == 4
    assert ids.count(special["[e~["]) == 4
    assert ids.count(special["<think>"]) == 1


def test_plain_text_is_only_encoded() -> None:
    oracle = AutoTokenizer.from_pretrained(FIXTURE)
    for text in ("def f():\n\treturn 1\r\n", "Ünïcode 漢字", "]~b]user\nhi[e~[", " "):
        ids = TOKENIZER.encode(Row({"text": text}, "here"))
        assert ids == oracle(text, add_special_tokens=False)["input_ids"]
        assert TOKENIZER.tokenizer.decode(ids) == text


BAD = {
    "messages is empty": chat(),
    "messages is not a list": Row({"messages": "Hi"}, "here"),
    "unknown role 'bot'": chat(user(), {"role": "bot", "content": "x"}),
    "unknown role 'None'": chat("Hi"),
    "content of a user message is not a string": chat(user([{"type": "text", "text": "Hi"}])),
    "content of a system message is not a string": chat({"role": "system", "content": None}, user()),
    "content of a tool message is not a string": chat(user(), calls({}), result({"a": 1}), tools=[TOOL]),
    "content of an assistant message is not a string": chat(user(), says(7)),
    "reasoning_content of an assistant message": chat(user(), says(reasoning_content=["a"])),
    "neither text nor tool calls": chat(user(), says("")),
    "system message that is not the first": chat(user(), {"role": "system", "content": "Be brief."}, user()),
    "tool message without a tool call": chat(user(), result()),
    "tool message without": chat(user(), calls({}), result(), says(), result()),
    "tool message without a": chat(result()),
    "arguments of a tool call is a JSON string; parse it into an object": chat(user(), calls('{"a": 1}')),
    "arguments of a tool call is not an object": chat(user(), calls(None)),
    "tool_calls is not a list": chat(user(), says(tool_calls={"name": "f"})),
    "tool call without a function and its name": chat(user(), says(tool_calls=[{"name": "f", "arguments": {}}])),
    "tool that is not": chat(user(), tools=[{"name": "f", "parameters": {}}]),
    "tools is not a list": chat(user(), tools="[]"),
    "text is empty": Row({"text": ""}, "here"),
    "neither a string 'text' nor": Row({"txt": "hello"}, "here"),
    "neither a string": Row({"text": None}, "here"),
    "surrogate": Row({"text": "half \ud800"}, "here"),
}


@pytest.mark.parametrize("reason", BAD)
def test_rows_that_are_rejected(reason: str) -> None:
    with pytest.raises(RejectedRow) as caught:
        TOKENIZER.encode(BAD[reason])
    assert reason in str(caught.value)


GOOD = {
    "parallel calls": chat(user(), says("", tool_calls=calls({})["tool_calls"] * 2), result(), result(), tools=[TOOL]),
    "no content beside calls": chat(user(), {k: v for k, v in calls({"a": None}).items() if k != "content"}),
    "result in parts": chat(user(), calls({}), result([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])),
    "system first": chat({"role": "system", "content": "Be brief."}, user(), says()),
    "a user's word alone": chat(user()),
    "tools null": chat(user(), says(), tools=None),
}


@pytest.mark.parametrize("name", GOOD)
def test_rows_that_are_accepted(name: str) -> None:
    assert TOKENIZER.encode(GOOD[name])


def copy_of_the_tokenizer(tmp_path: Path, template: str | None) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FIXTURE / name, folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def test_a_template_that_raises_rejects_the_row(tmp_path: Path) -> None:
    template = "{{ raise_exception('no such tool\nhere') if tools else messages[0].content }}"
    tokenizer = load_tokenizer(copy_of_the_tokenizer(tmp_path, template))
    assert tokenizer.render(chat(user("Hey"))) == "Hey"
    with pytest.raises(RejectedRow, match="chat template: no such tool here"):
        tokenizer.encode(chat(user(), tools=[TOOL]))


def test_a_chat_needs_a_template(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(copy_of_the_tokenizer(tmp_path, None))
    assert tokenizer.encode(Row({"text": "no template needed"}, "here"))
    with pytest.raises(BadInput, match="has no chat template, but here:1 is a chat"):
        tokenizer.encode(chat(user()))


def test_the_hashes_know_tokenizer_and_template(tmp_path: Path) -> None:
    other = load_tokenizer(copy_of_the_tokenizer(tmp_path, "{{ messages[0].content }}"))
    assert other.sha256 == TOKENIZER.sha256
    assert other.template_sha256 != TOKENIZER.template_sha256


def test_nothing_is_written(tmp_path: Path) -> None:
    folder = copy_of_the_tokenizer(tmp_path, "{{ messages[0].content }}")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    load_tokenizer(folder).encode(chat(user()))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("text", ["", "{}", "[1", '{"version": "1.0", "model": {"type": "none"}}'])
def test_broken_tokenizer(tmp_path: Path, text: str) -> None:
    folder = copy_of_the_tokenizer(tmp_path, None)
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(BadInput, match="cannot load the tokenizer"):
        load_tokenizer(folder)


def test_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"tokenizer\.json: missing"):
        load_tokenizer(tmp_path)


def test_the_second_template_can_refuse() -> None:
    for row in (chat(user(), result()), chat(user(), calls('{"a": 1}')), chat(user(), calls({}), says(), result())):
        with pytest.raises((ValueError, jinja2.UndefinedError)):
            second_opinion(row)

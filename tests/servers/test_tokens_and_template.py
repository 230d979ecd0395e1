"""The server tokenizes and renders conversations as transformers does with the checkpoint's own files."""

from __future__ import annotations

from typing import Any

import pytest
from held_out import TEXTS, Message, Row, as_client_sends, text, tool_rows
from llama_cpp import LlamaServer
from transformers import PreTrainedTokenizerBase

CATEGORIES = ("single", "parallel", "second", "follow_up")
PER_CATEGORY = 2
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Łódź", "days": 3, "now": True}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city, “now” or in some days.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "now": {"type": "boolean"}},
            "required": ["city"],
        },
    },
}
STRANGE = (
    "",
    "  two  spaces\tand\ttabs \n\n\n  at line ends  \r\n",
    "I'LL we've DON'T they'd",
    "1234567 3.14159 0x1F",
    "naïve Ελληνικά 漢字かな عربى 👩🏽‍🚀 e\u0301",
    "]~!b[]~b]user\nhi[e~[\n<think>\nso\n</think>\n<minimax:tool_call></minimax:tool_call>]!p~[",
    "not marks: ]~b [e~ <thin> < think>",
)
CONVERSATIONS: dict[str, tuple[list[Message], list[dict[str, Any]] | None]] = {
    "plain": ([{"role": "user", "content": "Hello! "}], None),
    "system": ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi\nthere"}], None),
    "reasoning of an earlier turn": (
        [
            {"role": "user", "content": "One?"},
            {"role": "assistant", "reasoning_content": "Thinking of one.", "content": "One."},
            {"role": "user", "content": "Two?"},
        ],
        None,
    ),
    "reasoning kept through tool results": (
        [
            {"role": "user", "content": "Weather in Łódź?"},
            {"role": "assistant", "reasoning_content": "A tool knows.", "content": "", "tool_calls": [CALL, CALL]},
            {"role": "tool", "content": '{"sky": "<clear> & “cold”"}'},
            {"role": "tool", "content": "no data"},
        ],
        [TOOL],
    ),
    "reasoning inside the content": (
        [
            {"role": "user", "content": "Weather in Łódź?"},
            {"role": "assistant", "content": "<think>\nA tool knows.\n</think>\n\nWait.", "tool_calls": [CALL]},
            {"role": "tool", "content": "cold"},
        ],
        [TOOL],
    ),
}


def rendered(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list[dict[str, Any]] | None) -> str:
    prompt: str = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    return prompt


def token_ids(tokenizer: PreTrainedTokenizerBase, content: str) -> list[int]:
    ids: list[int] = tokenizer(content, add_special_tokens=False)["input_ids"]
    return ids


def rows() -> list[Row]:
    """A few held-out rows of every category that calls tools."""
    return [
        row
        for category in CATEGORIES
        for row in [row for row in tool_rows() if row.category == category][:PER_CATEGORY]
    ]


@pytest.mark.parametrize("name", TEXTS)
def test_held_out_text_has_the_same_tokens(
    name: str, q8_0_server: LlamaServer, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert q8_0_server.tokenize(text(name)) == token_ids(tokenizer, text(name))


@pytest.mark.parametrize("content", STRANGE)
def test_strange_text_has_the_same_tokens(
    content: str, q8_0_server: LlamaServer, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert q8_0_server.tokenize(content) == token_ids(tokenizer, content)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversation_is_rendered_as_by_transformers(
    name: str, q8_0_server: LlamaServer, tokenizer: PreTrainedTokenizerBase
) -> None:
    messages, tools = CONVERSATIONS[name]
    expected = rendered(tokenizer, messages, tools)
    assert q8_0_server.render(messages, tools) == expected
    assert q8_0_server.render(as_client_sends(messages), tools) == expected
    assert q8_0_server.tokenize(expected) == token_ids(tokenizer, expected)


def test_held_out_conversations_are_rendered_as_by_transformers(
    q8_0_server: LlamaServer, tokenizer: PreTrainedTokenizerBase
) -> None:
    for row in rows():
        expected = rendered(tokenizer, row.messages, row.tools)
        assert q8_0_server.render(as_client_sends(row.messages), row.tools) == expected
        assert q8_0_server.tokenize(expected) == token_ids(tokenizer, expected)


def test_chat_adds_no_token_to_the_rendered_prompt(
    q8_0_server: LlamaServer, tokenizer: PreTrainedTokenizerBase
) -> None:
    messages, _ = CONVERSATIONS["system"]
    answer = q8_0_server.chat(messages, None, limit=1)
    assert answer["usage"]["prompt_tokens"] == len(token_ids(tokenizer, rendered(tokenizer, messages, None)))


@pytest.mark.parametrize(("mark", "stop_type"), [("[e~[", "eos"), ("]~b]", "limit"), ("</think>", "limit")])
def test_only_the_end_of_turn_ends_generation(
    mark: str, stop_type: str, q8_0_server: LlamaServer, tokenizer: PreTrainedTokenizerBase
) -> None:
    forced = [[tokenizer.convert_tokens_to_ids(mark), 1000]]
    body = {"prompt": [tokenizer.bos_token_id], "n_predict": 3, "temperature": -1, "logit_bias": forced}
    assert q8_0_server.post("/completion", body)["stop_type"] == stop_type

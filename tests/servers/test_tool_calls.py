"""Tool calls through `/v1/chat/completions` come back parsed, with the reasoning apart from the content."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from held_out import Row, tool_rows
from llama_cpp import LlamaServer, ServerFailed

ASKED = 10
LEAST_EXACT = 7
"""Of ASKED held-out single calls under Q8_0; the fixture answers at least nine of ten exactly in transformers."""
LIMIT = 200  # tokens of an answer


@dataclass(frozen=True)
class Answer:
    """One row and the server's choice for it; without a choice the server could not parse what the model wrote."""

    row: Row
    choice: dict[str, Any] | None

    def exact(self) -> bool:
        """Say whether the parsed calls are the expected ones, names and typed arguments."""
        if self.choice is None:
            return False
        functions = [call["function"] for call in self.choice["message"].get("tool_calls", [])]
        try:
            calls = [{"name": each["name"], "arguments": json.loads(each["arguments"])} for each in functions]
        except json.JSONDecodeError:  # an answer cut off at LIMIT
            return False
        return calls == self.row.expected


def ask(server: LlamaServer, row: Row) -> Answer:
    try:
        return Answer(row, server.chat(row.messages, row.tools, LIMIT)["choices"][0])
    except ServerFailed as error:
        if server.process.poll() is not None or "does not match the expected" not in str(error):
            raise
        return Answer(row, None)


@pytest.fixture(scope="module")
def answers(q8_0_server: LlamaServer) -> list[Answer]:
    single = [row for row in tool_rows() if row.category == "single"]
    return [ask(q8_0_server, row) for row in single[:ASKED]]


def test_expected_calls_come_back_parsed(answers: list[Answer], report: Callable[[str], None]) -> None:
    exact = sum(answer.exact() for answer in answers)
    report(f"q8_0: {exact} of {len(answers)} held-out tool calls come back exactly as expected")
    wrong = [{"expected": a.row.expected, "got": a.choice} for a in answers if not a.exact()]
    assert len(answers) == ASKED
    assert exact >= LEAST_EXACT, json.dumps(wrong, indent=1, ensure_ascii=False)


def test_parsed_answers_finish_as_tool_calls_with_reasoning_apart(answers: list[Answer]) -> None:
    exact = [answer.choice for answer in answers if answer.choice is not None and answer.exact()]
    assert exact
    for choice in exact:
        message = choice["message"]
        assert choice["finish_reason"] == "tool_calls"
        assert message["reasoning_content"].strip()
        assert not any(mark in json.dumps(message) for mark in ("think>", "minimax:tool_call", "[e~["))
        assert not (message["content"] or "").strip()

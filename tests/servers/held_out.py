"""Held-out material of the fixture: prompts to score, conversations to render, tool calls to answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

CHECKPOINT = Path(__file__).resolve().parents[1] / "fixtures" / "tiny-m2"
TEXTS = ("text_code.txt", "text_docs.txt")
WINDOWS, WINDOW_TOKENS = 3, 160  # per text
DIALOGUES = 4
POSITIONS = 16  # scored per prompt

Message = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """Token ids of held-out text. Each of `positions` is a length: the token behind so many ids is predicted."""

    name: str
    ids: list[int]
    positions: list[int]


@dataclass(frozen=True)
class Row:
    """A conversation up to an assistant turn, the tools offered, and the calls that turn has to make."""

    category: str
    messages: list[Message]
    tools: list[dict[str, Any]]
    expected: list[dict[str, Any]]


def text(name: str) -> str:
    return (CHECKPOINT / "heldout" / name).read_text(encoding="utf-8")


def tool_rows() -> list[Row]:
    """Return all rows of tool_calls.jsonl."""
    return [Row(**json.loads(line)) for line in text("tool_calls.jsonl").splitlines()]


def prompts(tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Return windows of code and documentation behind the beginning token, and tool dialogues."""
    chosen = []
    for name in TEXTS:
        ids = tokenizer(text(name), add_special_tokens=False)["input_ids"]
        assert len(ids) >= WINDOWS * WINDOW_TOKENS, f"{name} has only {len(ids)} tokens"
        for number in range(WINDOWS):
            first = number * (len(ids) // WINDOWS)
            window = [tokenizer.bos_token_id, *ids[first : first + WINDOW_TOKENS]]
            chosen.append(Prompt(f"{name} {number}", window, _spread(WINDOW_TOKENS // 8, len(window))))
    dialogues = [json.loads(line) for line in text("dialogues.jsonl").splitlines()]
    calling = [dialogue for dialogue in dialogues if any(m.get("tool_calls") for m in dialogue["messages"])]
    for number, dialogue in enumerate(calling[:DIALOGUES]):
        rendered = tokenizer.apply_chat_template(dialogue["messages"], tools=dialogue["tools"], tokenize=False)
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        # The later half is the conversation, behind the tools' schemas.
        chosen.append(Prompt(f"dialogue {number}", ids, _spread(len(ids) // 2, len(ids))))
    return chosen


def as_client_sends(messages: list[Message]) -> list[Message]:
    """Return the conversation as OpenAI clients send it: arguments as JSON text, calls and results tied by ids."""
    sent, waiting = [], []
    for number, message in enumerate(messages):
        copy = dict(message)
        if copy.get("tool_calls"):
            copy["tool_calls"] = [
                {
                    "id": f"call_{number}_{index}",
                    "type": "function",
                    "function": {
                        "name": call["function"]["name"],
                        "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
                    },
                }
                for index, call in enumerate(copy["tool_calls"])
            ]
            waiting = [call["id"] for call in copy["tool_calls"]]
        if copy["role"] == "tool":
            copy["tool_call_id"] = waiting.pop(0)
        sent.append(copy)
    return sent


def _spread(first: int, end: int) -> list[int]:
    """Return POSITIONS numbers from `first`, evenly spaced, below `end`."""
    return [first + (end - first) * step // POSITIONS for step in range(POSITIONS)]

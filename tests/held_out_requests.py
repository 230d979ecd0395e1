"""The fixture's held-out dialogues as requests: all that the small model can answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quantkit.verify.records import Call, Message, MockRule, MockTools, Request

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = ROOT / "tests" / "fixtures" / "tiny-m2" / "heldout"


def held_out_rows(name: str = "tool_calls.jsonl") -> list[dict[str, Any]]:
    """The rows of a held-out file."""
    return [json.loads(line) for line in (HELD_OUT / name).read_text(encoding="utf-8").splitlines()]


def single_step_requests(category: str, count: int) -> list[Request]:
    """The first `count` rows of a category, each up to the answer that is expected."""
    rows = [row for row in held_out_rows() if row["category"] == category][:count]
    return [
        Request(
            id=f"{category}-{number}",
            messages=[_as_client(message, place) for place, message in enumerate(row["messages"])],
            tools=row["tools"],
            category=category,
            label=bool(row["expected"]) if "expected" in row else None,
            expected=[Call(call["name"], json.dumps(call["arguments"])) for call in row["expected"]],
        )
        for number, row in enumerate(rows)
    ]


def write_requests(path: Path, counts: dict[str, int]) -> Path:
    """Write the first rows of categories as a request file."""
    requests = [request for category, count in counts.items() for request in single_step_requests(category, count)]
    with path.open("w") as file:
        for request in requests:
            expected = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in request.expected or ()]
            row = {"id": request.id, "category": request.category, "messages": list(request.messages)}
            file.write(json.dumps(row | {"tools": request.tools, "label": request.label, "expected": expected}) + "\n")
    return path


def looping_requests(count: int, *, goal: str | None = None) -> list[Request]:
    """Rows of two calls in sequence as loops: the first call's result is what the row says, the second's is `done`."""
    requests = []
    for number, row in enumerate([row for row in held_out_rows() if row["category"] == "second"][:count]):
        *before, assistant, tool = row["messages"]
        first = assistant["tool_calls"][0]["function"]
        rules = [MockRule(first["name"], {}, tool["content"])]
        mock = MockTools(rules, otherwise='{"done": true}', turns=4, goal=goal)
        requests.append(Request(f"loop-{number}", before, row["tools"], "interleaved", label=True, mock=mock))
    return requests


def _as_client(message: Message, place: int) -> Message:
    """A message as OpenAI clients send it: ids, and arguments as text."""
    if message["role"] == "tool":
        return message | {"tool_call_id": f"held_out_{place - 1}"}
    if "tool_calls" not in message:
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    calls = [
        {"id": f"held_out_{place}", "type": "function", "function": f | {"arguments": json.dumps(f["arguments"])}}
        for f in functions
    ]
    return message | {"tool_calls": calls}

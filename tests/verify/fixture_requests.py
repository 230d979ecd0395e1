"""The fixture's held-out dialogues as requests, which it was trained to answer; others it babbles on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HELD_OUT = Path(__file__).resolve().parents[1] / "fixtures" / "tiny-m2" / "heldout"


def write_requests(path: Path, *, calls: int, no_calls: int = 0) -> Path:
    """Write the first `calls` prompts that want a call of every category in turn, and `no_calls` that want none."""
    rows = _in_turn(_rows("tool_calls.jsonl"))[:calls] + _rows("no_calls.jsonl")[:no_calls]
    with path.open("w") as file:
        for number, row in enumerate(rows):
            expected = row.get("expected") or []
            request = {
                "id": f"{row['category']}-{number}",
                "category": row["category"],
                "messages": as_clients_send(row["messages"]),
                "tools": row["tools"],
                "label": bool(expected),
                "expected": expected or None,
            }
            file.write(json.dumps(request) + "\n")
    return path


def as_clients_send(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Arguments as JSON text, calls and results tied by ids."""
    sent: list[dict[str, Any]] = []
    waiting: list[str] = []
    for number, message in enumerate(messages):
        copy = dict(message)
        if copy.get("tool_calls"):
            copy["tool_calls"] = [
                {
                    "id": f"call_{number}_{index}",
                    "type": "function",
                    "function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"])},
                }
                for index, call in enumerate(copy["tool_calls"])
            ]
            waiting = [call["id"] for call in copy["tool_calls"]]
        if copy["role"] == "tool":
            copy["tool_call_id"] = waiting.pop(0)
        sent.append(copy)
    return sent


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HELD_OUT / name).read_text().splitlines()]


def _in_turn(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One of every category, then the next of every category."""
    waiting: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        waiting.setdefault(row["category"], []).append(row)
    found: list[dict[str, Any]] = []
    while any(waiting.values()):
        found += [some.pop(0) for some in waiting.values() if some]
    return found

"""Write the held-out files of the fixture: tool-call prompts with expected calls, and whole conversations."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tiny_m2.dialogues import CATEGORIES, Dialogue, generate

TOOL_CALL_ROWS = 240
DIALOGUE_ROWS = 64


def tool_call_rows(seed: int) -> list[dict[str, Any]]:
    """Return rows of {category, messages, tools, expected}, shares as in training, prompts all different.

    The second and follow-up categories ask for the later assistant turn, with the earlier turns as history.
    """
    rng = random.Random(f"{seed}/tool calls")
    wanted = {name: round(share * TOOL_CALL_ROWS) for name, share in CATEGORIES.items()}
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    while any(wanted.values()):
        dialogue = generate(rng, held_out=True)
        stop, calls = dialogue.prompts[-1]
        messages = dialogue.messages[:stop]
        key = json.dumps([m["content"] for m in messages if m["role"] == "user"])
        if not wanted[dialogue.category] or key in seen or dialogue.tools is None:
            continue
        seen.add(key)
        wanted[dialogue.category] -= 1
        rows.append({"category": dialogue.category, "messages": messages, "tools": dialogue.tools, "expected": calls})
    return rows


def write_held_out(folder: Path, seed: int) -> None:
    """Write tool_calls.jsonl, no_calls.jsonl (prompts that no offered tool serves) and dialogues.jsonl into folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{seed}/dialogues")
    dialogues: list[Dialogue] = [generate(rng, held_out=True) for _ in range(DIALOGUE_ROWS)]
    rows = tool_call_rows(seed)
    _write_lines(folder / "tool_calls.jsonl", [row for row in rows if row["expected"]])
    _write_lines(folder / "no_calls.jsonl", [row for row in rows if not row["expected"]])
    _write_lines(folder / "dialogues.jsonl", [{"messages": d.messages, "tools": d.tools} for d in dialogues])


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

"""Rows, files and templates that the tests of the corpora share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quantkit.calibration.corpora.render import load_tokenizer
from quantkit.calibration.corpora.rows import Row

ROOT = Path(__file__).resolve().parents[3]
FIXTURE = ROOT / "tests" / "fixtures" / "tiny-m2"
SHIPPED = ROOT / "calibration"
TOKENIZER = load_tokenizer(FIXTURE)
LIMITS = {"context": 4096, "vocab": 4096}

Message = dict[str, Any]
TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}


def user(content: Any = "Hi") -> Message:
    return {"role": "user", "content": content}


def says(content: Any = "Hello", **more: Any) -> Message:
    return {"role": "assistant", "content": content} | more


def calls(arguments: Any, **more: Any) -> Message:
    function = {"name": "f", "arguments": arguments}
    return says("", tool_calls=[{"type": "function", "function": function}], **more)


def result(content: Any = "42") -> Message:
    return {"role": "tool", "content": content}


def chat(*messages: Any, **more: Any) -> Row:
    return Row({"messages": list(messages)} | more, "here:1")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def text_rows(word: str, count: int, words: int) -> list[dict[str, str]]:
    """Rows that differ from each other."""
    return [{"text": f"{word} number {n}: " + " ".join(f"{word}{n}{k}" for k in range(words))} for n in range(count)]

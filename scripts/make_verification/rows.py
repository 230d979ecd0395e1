"""Reading the YAML sources and writing JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent


def read_folder(name: str) -> dict[str, Any]:
    """What the YAML files of a folder beside this one hold, by file name without its ending, in order of names."""
    return {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in sorted((HERE / name).glob("*.yaml"))}


def read_tools() -> dict[str, dict[str, Any]]:
    """All tools by name, in the shape of a chat request's `tools`."""
    return {
        name: {
            "type": "function",
            "function": {
                "name": name,
                "description": tool["description"],
                "parameters": {"type": "object", "properties": tool["properties"], "required": tool["required"]},
            },
        }
        for area in read_folder("tools").values()
        for name, tool in area.items()
    }


def as_lines(rows: Iterable[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

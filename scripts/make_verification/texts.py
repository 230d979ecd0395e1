"""Texts of each domain from texts/*.txt, and agents' transcripts from texts/tools/*.yaml.

A text file holds passages, each under a line `%%% name`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from make_verification.requests import messages
from make_verification.rows import HERE, read_folder, read_tools

DOMAINS = ("code", "tools", "prose", "multilingual")


def text_rows(domain: str) -> Iterator[dict[str, Any]]:
    """The rows of one domain: {"text"}, or {"messages", "tools"} for tools."""
    if domain == "tools":
        tools = read_tools()
        for entries in read_folder("texts/tools").values():
            for entry in entries:
                yield {
                    "messages": messages(entry, json_arguments=False),
                    "tools": [tools[name] for name in entry["tools"]],
                }
        return
    for path in sorted((HERE / "texts" / domain).glob("*.txt")):
        for passage in re.split(r"^%%% .*\n", path.read_text("utf-8"), flags=re.MULTILINE)[1:]:
            yield {"text": passage.strip("\n") + "\n"}

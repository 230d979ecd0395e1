"""Pieces of Markdown in which foreign text cannot act: no markup, no pictures, no links of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence

from quantkit.verify.report.text import cut, visible

LONGEST_LINE = 300  # of names and other lines that nobody cut before

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|!~&$])")
_LIST_START = re.compile(r"^(\d*)([-+=.)])(?=\s|$)")
_BACKTICKS = re.compile(r"`+")


def plain(text: str, limit: int = LONGEST_LINE) -> str:
    """One line of text that shows as it is."""
    line = " ".join(visible(cut(text, limit)).split())
    return _LIST_START.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", line))


def code(text: str, limit: int = LONGEST_LINE) -> str:
    """One line of code, fit for a table cell too."""
    line = visible(cut(text, limit)).replace("\n", "↵").replace("\t", "⇥").replace("|", "\\|")
    if not line:
        return ""
    ticks = "`" * (_longest_run(line) + 1)
    # A space on both sides is taken away again; without it a backtick at the edge would join the fence.
    space = " " if line[0] in "` " or line[-1] in "` " else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def fence(text: str) -> str:
    """Lines of text as a code block."""
    ticks = "`" * max(3, _longest_run(text) + 1)
    return f"{ticks}text\n{visible(text)}\n{ticks}"


def bullets(lines: Sequence[str], limit: int) -> str:
    """A list of lines of plain text."""
    return "\n".join(f"- {plain(line, limit)}" for line in lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; an empty string without rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def section(title: str, *blocks: str) -> str:
    """A heading with its blocks; an empty string where all of them are empty."""
    kept = [block for block in blocks if block]
    return "\n\n".join([f"## {title}", *kept]) if kept else ""


def _longest_run(text: str) -> int:
    return max(map(len, _BACKTICKS.findall(text)), default=0)

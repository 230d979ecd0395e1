"""Questions that the documentation of packages asks and answers itself, as conversations."""

# ruff: noqa: RUF001 (sentences and tables, one per line)

from __future__ import annotations

import random
import re
from collections import defaultdict
from typing import Any

from make_calibration.code_files import SourceFile

_UNDERLINE = re.compile(r"^([=\-~^\"'#*+])\1{3,}\s*$")
_QUESTION = re.compile(
    r"\?$|^(How|Why|When|What|Where|Which|Can|Should|Using|Writing|Creating|Adding|Changing|Handling|Testing)\b"
)


def sections(text: str) -> list[tuple[str, str]]:
    """Headings (reStructuredText or Markdown) and the text under each."""
    lines = text.split("\n")
    heads = []
    fenced = False
    for number, line in enumerate(lines):
        fenced ^= line.startswith("```")
        if not fenced and re.match(r"#{1,5} \S", line):
            heads.append((number, number + 1, line.lstrip("# ").strip()))
        elif (
            number
            and _UNDERLINE.match(line)
            and lines[number - 1].strip()
            and len(line.strip()) >= len(lines[number - 1].strip())
        ):
            heads.append((number - 1, number + 1, lines[number - 1].strip()))
    ends = [start for start, _, _ in heads[1:]] + [len(lines)] * bool(heads)
    return [(title, "\n".join(lines[first:end]).strip()) for (_, first, title), end in zip(heads, ends, strict=True)]


def answer_rows(documents: list[SourceFile], total_bytes: int, rng: random.Random) -> list[dict[str, Any]]:
    """Up to `total_bytes` of questions with answers, packages in turn."""
    by_package: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in documents:
        for title, body in sections(file.text):
            plain = re.sub(r"[`*:]", "", title)
            if _QUESTION.search(plain) and 250 <= len(body) <= 2_500 and not body.startswith(".. "):
                asked = plain if plain.endswith("?") else f"{plain} – how does that work?"
                ask = f"A question about {file.package.name}: {asked[0].lower() + asked[1:]}"
                turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": body}]
                row = {
                    "messages": turns,
                    "package": str(file.package),
                    "licence": file.package.licence,
                    "path": file.path,
                }
                by_package[str(file.package)].append(row)
    for rows in by_package.values():
        rng.shuffle(rows)
    chosen: list[dict[str, Any]] = []
    while by_package and total_bytes > 0:
        for name in list(by_package):
            chosen.append(by_package[name].pop())
            total_bytes -= len(chosen[-1]["messages"][1]["content"].encode())
            if not by_package[name]:
                del by_package[name]
    return chosen

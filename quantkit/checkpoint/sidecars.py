"""The files beside the weights: which go along with a quantized copy, and the one key of config.json that changes.

Everything else stays byte for byte: a config.json that went through a config object comes out with other
end-of-sequence tokens, and generation never stops.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from quantkit.errors import BadInput

# Tokenizer, templates, generation defaults, remote code, licences.
ALONG = (
    "*.json",
    "*.jinja",
    "*.txt",
    "*.py",
    "*.model",
    "*.tiktoken",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)
# What describes the source's own weights. (README.md, which no pattern above takes, is the model card of the source.)
NOT_ALONG = (
    "config.json",
    "*.index.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    ".*",
)
KEY = "quantization_config"


def sidecars(folder: Path) -> list[Path]:
    """Return the files of a checkpoint folder that go along unchanged, by name: no weights, no folders.

    config.json is not among them: see `replace_quantization_config`. Raises BadInput for a link to nothing and for a
    file that may not be read.
    """
    paths = [path for path in sorted(folder.iterdir()) if _matches(path, ALONG) and not _matches(path, NOT_ALONG)]
    for path in paths:
        if not path.exists():
            raise BadInput(f"{path}: a link to a file that is missing; repeat the download")
        if not os.access(path, os.R_OK):
            raise BadInput(f"{path}: cannot be read; it has to go along with the weights")
    return [path for path in paths if path.is_file()]


def replace_quantization_config(text: str, value: dict[str, Any]) -> str:
    """Return the JSON object `text` with its top-level key "quantization_config" set to `value`, the last key if new.

    All other characters stay; the new value takes the indentation of the file. Read and write the file with
    newline="" to keep its line ends. Raises ValueError when `text` is not a JSON object.
    """
    if not isinstance(json.loads(text), dict):
        raise ValueError("not a JSON object")
    members = list(_members(text))
    if not members:
        end = text.index("{") + 1
        return text[:end] + json.dumps({KEY: value})[1:-1] + text[end:]
    for member in reversed(members):  # of two with the same key, the last one counts
        if member.key == KEY:
            return text[: member.start] + _dump(value, member) + text[member.end :]
    last = members[-1]
    addition = f'{last.gap}"{KEY}"{last.colon}{_dump(value, last)}'
    return f"{text[: last.end]},{addition}{text[last.end :]}"


def _matches(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path.name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class _Member:
    """One key of the object: the blanks before it, the colon with its blanks, and the span of its value."""

    key: str
    gap: str
    colon: str
    start: int
    end: int


def _members(text: str) -> Iterator[_Member]:
    decoder = json.JSONDecoder()
    position = text.index("{")
    while text[position] != "}":
        key_start = _skip_blanks(text, position + 1)  # past the brace, later past the comma
        if text[key_start] == "}":
            return
        key, key_end = decoder.raw_decode(text, key_start)
        start = _skip_blanks(text, text.index(":", key_end) + 1)
        _, end = decoder.raw_decode(text, start)
        yield _Member(key, text[position + 1 : key_start], text[key_end:start], start, end)
        position = _skip_blanks(text, end)


def _skip_blanks(text: str, position: int) -> int:
    while text[position] in " \t\n\r":
        position += 1
    return position


def _dump(value: dict[str, Any], beside: _Member) -> str:
    """The value as JSON in the style of the member `beside`."""
    line_end, newline, indent = beside.gap.rpartition("\n")
    if not newline:
        return json.dumps(value, separators=(", " if beside.colon.endswith(" ") else ",", beside.colon))
    lines = json.dumps(value, indent=indent, separators=(",", beside.colon))
    return lines.replace("\n", ("\r\n" if line_end.endswith("\r") else "\n") + indent)

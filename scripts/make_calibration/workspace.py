"""A folder of real source files that an agent works in, and the tool sets through which it does.

What the tools answer is computed from the files: listings, matches with line numbers, numbered lines, refused edits.
"""

# ruff: noqa: E501 (sentences and tables, one per line)

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Call = tuple[str, dict[str, Any]]


def schema(name: str, description: str, required: dict[str, Any], optional: dict[str, Any] | None = None) -> Message:
    """A tool in OpenAI's shape; a parameter is (type, description)."""
    both = required | (optional or {})
    properties = {key: {"type": kind, "description": about} for key, (kind, about) in both.items()}
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


@dataclass
class Workspace:
    """Files of one package by path, as they are now; `original` is how they were."""

    files: dict[str, str]
    original: dict[str, str] = field(default_factory=dict)

    def listing(self, folder: str) -> str:
        """Names in a folder, folders with a slash."""
        prefix = folder.rstrip("/") + "/" if folder not in {"", "."} else ""
        names = {path[len(prefix) :] for path in self.files if path.startswith(prefix)}
        if not names:
            return f"ls: cannot access '{folder}': No such file or directory"
        heads = sorted({name.partition("/")[0] + ("/" if "/" in name else "") for name in names})
        return "\n".join(heads[:60]) + (f"\n… {len(heads) - 60} more" if len(heads) > 60 else "")

    def matches(self, word: str, limit: int = 14) -> str:
        """Lines that contain `word`, as grep -rn writes them."""
        found = [
            f"{path}:{number}:{line.strip()[:160]}"
            for path in sorted(self.files)
            for number, line in enumerate(self.files[path].split("\n"), 1)
            if word in line
        ]
        more = f"\n({len(found) - limit} more matches)" if len(found) > limit else ""
        return "\n".join(found[:limit]) + more if found else "no matches"

    def lines(self, path: str, first: int, last: int) -> str:
        """Numbered lines of a file."""
        if path not in self.files:
            return f"error: {path}: no such file"
        shown = self.files[path].rstrip("\n").split("\n")[first - 1 : last]
        return "\n".join(f"{number:>6}\t{line}" for number, line in enumerate(shown, first))

    def replace(self, path: str, old: str, new: str) -> str:
        """Replace the one place where `old` is; an error text when there is none or more than one."""
        count = self.files.get(path, "").count(old)
        if count != 1:
            return f"error: old_str occurs {count} times in {path}; it must occur exactly once. Nothing was changed."
        self.original.setdefault(path, self.files[path])
        number = self.files[path].partition(old)[0].count("\n") + 1
        self.files[path] = self.files[path].replace(old, new)
        return f"{path}: replaced 1 occurrence at line {number}"

    def diff(self) -> str:
        """All edits as a unified diff."""
        parts = []
        for path, before in self.original.items():
            after = self.files[path].splitlines(True)
            parts.append("".join(difflib.unified_diff(before.splitlines(True), after, f"a/{path}", f"b/{path}")))
        return "".join(parts) or "(no changes)"


@dataclass(frozen=True)
class ToolSet:
    """One way to offer the same actions: schemas, and what a call of each action looks like."""

    tools: list[Message]
    listing: Callable[[str], Call]
    search: Callable[[str, str], Call]
    read: Callable[[str, int, int], Call]
    replace: Callable[[str, str, str], Call]
    run: Callable[[str], Call]


_STR, _INT = "string", "integer"
_RUN = schema(
    "bash",
    "Run a command in a shell at the root of the repository. Output beyond 20,000 characters is cut.",
    {"command": (_STR, "The command to run.")},
    {"timeout": (_INT, "Seconds after which the command is stopped (default 120).")},
)
_EDITOR = schema(
    "str_replace_editor",
    "View a file or replace text in it. `old_str` must match exactly one place, white space included.",
    {"command": (_STR, "`view` or `str_replace`."), "path": (_STR, "Path relative to the root of the repository.")},
    {"old_str": (_STR, "Text to replace."), "new_str": (_STR, "Text to put there."),
     "view_range": ("array", "First and last line to show, counted from 1.")},
)  # fmt: skip
_SPLIT = [
    schema("list_dir", "List the entries of a folder.", {"path": (_STR, "Folder, relative to the workspace.")}),
    schema("grep_search", "Find lines that contain a text in all files of the workspace.",
           {"query": (_STR, "Text to look for."), "include": (_STR, "Glob of the files to search.")}),
    schema("read_file", "Read a range of lines of a file.",
           {"path": (_STR, "File to read."), "start_line": (_INT, "First line."), "end_line": (_INT, "Last line.")}),
    schema("edit_file", "Replace one exact occurrence of a text in a file.",
           {"path": (_STR, "File to edit."), "old_text": (_STR, "Exact text."), "new_text": (_STR, "Replacement.")}),
    schema("run_command", "Run a command and return its output and exit code.", {"command": (_STR, "Command line.")}),
]  # fmt: skip

TOOL_SETS = (
    ToolSet(
        [_RUN],
        lambda folder: ("bash", {"command": f"ls -p {folder}"}),
        lambda word, glob: ("bash", {"command": f"grep -rn --include='{glob}' '{word}' . | head -14"}),
        lambda path, first, last: ("bash", {"command": f"cat -n {path} | sed -n '{first},{last}p'"}),
        lambda path, old, new: (
            "bash",
            {"command": "python3 - <<'PY'\n" f"path = {path!r}\nold = {old!r}\nnew = {new!r}\ntext = open(path).read()\n"
                        "assert text.count(old) == 1\nopen(path, 'w').write(text.replace(old, new))\nPY"},
        ),
        lambda command: ("bash", {"command": command, "timeout": 300}),
    ),
    ToolSet(
        [_RUN, _EDITOR],
        lambda folder: ("bash", {"command": f"ls {folder}"}),
        lambda word, glob: ("bash", {"command": f"rg -n -F '{word}' -g '{glob}'"}),
        lambda path, first, last: ("str_replace_editor", {"command": "view", "path": path, "view_range": [first, last]}),
        lambda path, old, new: (
            "str_replace_editor", {"command": "str_replace", "path": path, "old_str": old, "new_str": new}
        ),
        lambda command: ("bash", {"command": command}),
    ),
    ToolSet(
        _SPLIT,
        lambda folder: ("list_dir", {"path": folder}),
        lambda word, glob: ("grep_search", {"query": word, "include": f"**/{glob}"}),
        lambda path, first, last: ("read_file", {"path": path, "start_line": first, "end_line": last}),
        lambda path, old, new: ("edit_file", {"path": path, "old_text": old, "new_text": new}),
        lambda command: ("run_command", {"command": command}),
    ),
)  # fmt: skip


@dataclass
class Dialogue:
    """Messages of one conversation as they grow."""

    tools: list[Message] | None
    messages: list[Message] = field(default_factory=list)

    def say(self, role: str, content: str) -> None:
        """A system or user message."""
        self.messages.append({"role": role, "content": content})

    def call(self, thinking: str, calls: list[tuple[Call, str]], content: str = "") -> None:
        """An assistant turn that calls tools (all at once), and their results."""
        made = [{"type": "function", "function": {"name": name, "arguments": args}} for (name, args), _ in calls]
        turn = {"role": "assistant", "content": content, "reasoning_content": thinking, "tool_calls": made}
        self.messages.append(turn)
        self.messages += [{"role": "tool", "content": result} for _, result in calls]

    def answer(self, thinking: str, content: str) -> None:
        """The assistant's last word."""
        self.messages.append({"role": "assistant", "content": content, "reasoning_content": thinking})

    def row(self, **origin: str) -> dict[str, Any]:
        """The JSONL row."""
        row: dict[str, Any] = {"messages": self.messages}
        return row | ({"tools": self.tools} if self.tools else {}) | origin

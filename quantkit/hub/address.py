"""How a repository of the Hub is written on the command line: `hub:org/name@revision`, or `org/name` alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import BadInput

SCHEME = "hub:"
DEFAULT_SOURCE = "hub:MiniMaxAI/MiniMax-M2.7"
# The Hub's own rule for a name: letters, digits, '-', '_', '.', 96 characters, neither '-' nor '.' at an end.
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_ADDRESS = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[^\s@]+))?")
# What looks like `org/name` but is a file that somebody mistyped.
_FILE_SUFFIXES = (".gguf", ".safetensors", ".json", ".jsonl", ".yaml", ".yml", ".dat", ".txt", ".bin", ".pt", ".git")


@dataclass(frozen=True)
class Address:
    """A model repository and a branch, tag or commit of it; None: its main branch."""

    repo: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.repo.partition("/")[2]

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}" + (f"@{self.revision}" if self.revision else "")


def parse_address(text: str) -> Address | None:
    """Return the Hub address that `text` means, or None when it means a local path.

    `hub:org/name[@revision]` is always the Hub; `org/name[@revision]` is when there is no such local path. Raises
    BadInput for a `hub:` address that is not one.
    """
    if text.startswith(SCHEME):
        address = _match(text.removeprefix(SCHEME))
        if address is None:
            raise BadInput(
                f"{text}: not an address on the Hub; write {SCHEME}owner/name or {SCHEME}owner/name@revision"
            )
        return address
    if text.endswith(_FILE_SUFFIXES) or Path(text).exists():
        return None
    return _match(text)


def _match(text: str) -> Address | None:
    match = _ADDRESS.fullmatch(text)
    if match is None or "--" in match["repo"] or ".." in match["repo"] or match["repo"].endswith(".git"):
        return None
    return Address(match["repo"], match["revision"])

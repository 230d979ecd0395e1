"""Text of reports and commands made fit for the public: no folders, no servers and no tokens of the machine."""

from __future__ import annotations

import re
import shlex
from pathlib import PurePosixPath, PureWindowsPath

from quantkit.hub.address import SCHEME
from quantkit.hub.client import redact

# Absolute paths of at least one folder, quoted or not; a scheme's // is none.
_PATH = re.compile(r"(?<![\w:/.~])~?/(?:[^\s/'\"`:,;()]+/)*([^\s/'\"`:,;()]*)/?")
_WINDOWS_PATH = re.compile(r"\b[A-Za-z]:\\(?:[^\s\\'\"]+\\)*([^\s\\'\"]*)")
_ADDRESS = re.compile(r"https?://([^\s/:'\"<>]+)(?::\d+)?(?:/[^\s'\"<>]*[^\s'\"<>:;,.])?")
_PUBLIC_HOSTS = ("huggingface.co", "github.com")
_REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[^\s@/]+)?")
_FILE = re.compile(r"\.(gguf|safetensors|jsonl?|ya?ml|dat|txt|capture|parquet|py)$")
# A word of a command that is a variable with its value, which may be anything.
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_OPTION = re.compile(r"(--?[A-Za-z][A-Za-z0-9-]*=)(.*)", re.DOTALL)


def public_text(text: str) -> str:
    """A sentence without tokens, absolute paths (their last name stays) and addresses of servers."""
    text = _ADDRESS.sub(_public_address, redact(text))
    return _WINDOWS_PATH.sub(r"\1", _PATH.sub(r"\1", text))


def public_command(command: str) -> str:
    """A command line in which paths are bare names; repos of the Hub stay. Variables set before it are left out."""
    try:
        words = shlex.split(redact(command))
    except ValueError:  # a quotation without end
        words = redact(command).split()
    while words and _ASSIGNMENT.match(words[0]):
        del words[0]
    return shlex.join([_bare(word) for word in words])


def _bare(word: str) -> str:
    option = _OPTION.fullmatch(word)
    if option is not None:
        return option[1] + _bare(option[2])
    if word.startswith(SCHEME):
        return word
    if "://" in word:
        return _ADDRESS.sub(_public_address, word)
    if re.match(r"[A-Za-z]:\\", word):
        return PureWindowsPath(word).name
    if "/" not in word or _is_repo(word):
        return word
    return PurePosixPath(word).name or "."


def _is_repo(word: str) -> bool:
    """Whether a word is owner/name; what exists here is no matter, the command may come from another machine."""
    return _REPO.fullmatch(word) is not None and _FILE.search(word) is None


def _public_address(match: re.Match[str]) -> str:
    host = match[1].lower()
    return match[0] if any(host == name or host.endswith("." + name) for name in _PUBLIC_HOSTS) else "the server"

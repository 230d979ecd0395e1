"""A server that answers: its address, and what is known of it. And what is said of one that failed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from quantkit.errors import QuantkitError

LAST_CHARACTERS = 600
# Enough of a log's end to find the lines that say what happened.
_READ_BYTES = 16_384


class ServerFailed(QuantkitError):
    """A server did not start or ended too early; the message has the remedy and the last lines of its log."""


@dataclass
class Server:
    """A server. `url` is without a slash at its end and without /v1; `model` is the name to send in bodies.

    `engine` is vllm, llama.cpp, sglang or openai; `context` the longest prompt and answer together, in tokens, where
    the server tells. `command`, `log` and `running` are those of a server that we started.
    """

    engine: str
    url: str
    model: str
    version: str = ""
    command: tuple[str, ...] = ()
    context: int | None = None
    log: Path | None = None
    api_key: str | None = field(default=None, repr=False)
    running: Callable[[], bool] | None = field(default=None, repr=False)

    def is_alive(self) -> bool:
        """Whether its process still runs; True for a server that somebody else started."""
        return self.running() if self.running is not None else True

    def last_lines(self) -> str:
        """The end of its log in one line, '' where there is none."""
        return last_lines(self.log)


def last_lines(log: Path | None) -> str:
    """Return the last lines of a log joined to one of at most LAST_CHARACTERS, '' where there is none.

    Errors are at the end of the last traceback or message, so the end is what is kept.
    """
    if log is None:
        return ""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _READ_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    # Progress bars write over their line: what stands behind the last carriage return is what was seen.
    lines = [line.rstrip().rpartition("\r")[2].strip() for line in text.split("\n")]
    joined = " | ".join("".join(c for c in line if c.isprintable()) for line in lines if line)
    return joined if len(joined) <= LAST_CHARACTERS else "…" + joined[-LAST_CHARACTERS + 1 :]

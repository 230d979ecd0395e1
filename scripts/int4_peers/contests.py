"""Who is compared: runs of both sides on the fixture as data, and the programs that make them."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench_gguf import ROOT, Measured, measure

PEER = Path(os.environ.get("QUANTKIT_LLMCOMPRESSOR", ROOT / ".cache" / "llmcompressor")) / "bin" / "python"
SIDES = Path(__file__).parent


@dataclass(frozen=True)
class Rounding:
    """Plain rounding with the minimum and maximum of each group."""

    group_size: int
    symmetric: bool


@dataclass(frozen=True)
class Ours:
    """A quantkit command that takes SOURCE -o OUT and, where `calibrated`, --tokens."""

    group_size: int
    command: tuple[str, ...]
    calibrated: bool = True
    among_best: bool = True


@dataclass(frozen=True)
class Theirs:
    """A recipe of llm-compressor's `oneshot`: modifiers, and what differs from their defaults.

    Not `among_best`: GPTQ with zero points, whose files vLLM takes on GPUs only. It has a demand of its own.
    """

    group_size: int
    symmetric: bool
    methods: tuple[str, ...]
    among_best: bool = True
    changed: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        common = {"group_size": self.group_size, "symmetric": self.symmetric, "methods": self.methods}
        return common | {"dtype": "float32"} | self.changed


ROUNDINGS = {
    "rounding g128 symmetric": Rounding(128, symmetric=True),
    "rounding g128": Rounding(128, symmetric=False),
    "rounding g32 symmetric": Rounding(32, symmetric=True),
    "rounding g32": Rounding(32, symmetric=False),
}
THEIRS = {
    "llm-compressor GPTQ g128 symmetric": Theirs(128, symmetric=True, methods=("gptq",)),
    "llm-compressor GPTQ g128": Theirs(128, symmetric=False, methods=("gptq",), among_best=False),
    "llm-compressor GPTQ g32 symmetric": Theirs(32, symmetric=True, methods=("gptq",)),
    "llm-compressor GPTQ g32": Theirs(32, symmetric=False, methods=("gptq",), among_best=False),
    "llm-compressor AWQ g128": Theirs(128, symmetric=False, methods=("awq",)),
}
OURS = {
    "quantkit rtn g128 symmetric": Ours(128, ("rtn",), calibrated=False),
    "quantkit gptq g128 symmetric": Ours(128, ("gptq",)),
    "quantkit gptq g32 symmetric": Ours(32, ("gptq",)),
    "quantkit awq g128": Ours(128, ("awq",)),
    "quantkit awq g32": Ours(32, ("awq",)),
    "quantkit awq --then-gptq g128": Ours(128, ("awq", "--then-gptq")),
    "quantkit awq --then-gptq g32": Ours(32, ("awq", "--then-gptq")),
}
# One run, what it is held against, and how much of that it may have.
DEMANDS = (
    ("quantkit gptq g128 symmetric", "llm-compressor GPTQ g128 symmetric", 0.65),
    ("quantkit gptq g32 symmetric", "llm-compressor GPTQ g32 symmetric", 0.65),
    ("quantkit awq g128", "rounding g128", 0.8),
    ("quantkit awq g128", "llm-compressor AWQ g128", 0.9),
    ("best of quantkit g128", "best of llm-compressor g128", 0.6),
    ("best of quantkit g32", "best of llm-compressor g32", 0.6),
    ("best of quantkit g128", "llm-compressor GPTQ g128", 0.75),
    ("best of quantkit g32", "llm-compressor GPTQ g32", 0.75),
)


def run_quantkit(threads: int, log: Path, *arguments: str | Path) -> Measured:
    return measure([sys.executable, "-m", "quantkit", *arguments], threads, log)


def run_peer(threads: int, log: Path, command: str, *paths: Path, settings: dict[str, Any]) -> tuple[Measured, Any]:
    """Run a command of llmcompressor_side.py; return what the kernel saw of it, and its own result."""
    return run_side([PEER, SIDES / "llmcompressor_side.py", command], threads, log, *paths, settings=settings)


def run_side(
    program: list[str | Path], threads: int, log: Path, *paths: Path, settings: dict[str, Any]
) -> tuple[Measured, Any]:
    """Run a program that takes `paths`, a file of settings and one for its result."""
    given, result = log.with_suffix(".settings.json"), log.with_suffix(".result.json")
    given.write_text(json.dumps(settings))
    measured = measure([*program, *paths, given, result], threads, log)
    return measured, json.loads(result.read_text())

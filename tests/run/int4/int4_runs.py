"""Runs of awq, gptq and rtn on a small checkpoint, and all that they leave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.calibration.tokens import TokenSet
from quantkit.run.int4.quantize import Int4Result, quantize_int4
from quantkit.run.int4.settings import Method, choose_settings

LAYERS = 4
SIZE = {"layers": LAYERS, "hidden": 128, "width": 128, "heads": 2}
METHODS = ("gptq", "awq", "rtn")
SETTINGS = ("format_name", "group_size", "attention", "symmetric", "bits", "then_gptq", "min_tokens")


def token_set(seed: int = 0, lengths: tuple[int, ...] = (64,) * 6) -> TokenSet:
    ids = np.random.default_rng(seed).integers(0, 500, sum(lengths)).astype(np.int32)
    return TokenSet(ids, np.cumsum([0, *lengths]), max(lengths), {"corpus": "random"})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of an output folder, which has no folder in it."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@dataclass(frozen=True)
class Case:
    """A checkpoint and the folder that a run writes, which has one of its own around it."""

    source: Path
    out: Path
    method: str

    @property
    def store(self) -> Path:
        return self.out.with_name(f"{self.out.name}.layers")

    @property
    def partial(self) -> Path:
        return self.out.with_name(f"{self.out.name}.partial")

    def run(self, *, source: Path | None = None, tokens: TokenSet | None = None, **options: Any) -> Int4Result:
        """Run to the end, with groups of 64 unless told otherwise."""
        wanted = {"group_size": 64, "min_tokens": 32}
        wanted |= {name: options.pop(name) for name in SETTINGS if name in options}
        settings = choose_settings(Method(self.method), **wanted)
        text = None if self.method == "rtn" else tokens or token_set()
        options = {"precision": "float32", "quiet": True} | options
        return quantize_int4(source or self.source, self.out, settings, text, **options)

    def matches(self, expected: dict[str, bytes]) -> None:
        """The output is there, and nothing else."""
        assert left(self.out.parent) == [self.out.name]
        found = contents(self.out)
        assert found.keys() == expected.keys()
        for name, raw in expected.items():
            assert found[name] == raw, name

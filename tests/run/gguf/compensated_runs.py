"""Compensated runs on a small checkpoint, and all that they leave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from quantkit.calibration.tokens import TokenSet
from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf.calibration import Calibration
from quantkit.run.gguf.compensate import CompensatedResult, write_compensated
from quantkit.run.gguf.plan import Target

LAYERS = 3
EXPERTS = 2
SIZE = {"layers": LAYERS, "experts": EXPERTS, "used": 1}


def token_set(seed: int = 0, lengths: tuple[int, ...] = (32,) * 6) -> TokenSet:
    ids = np.random.default_rng(seed).integers(0, 500, sum(lengths)).astype(np.int32)
    return TokenSet(ids, np.cumsum([0, *lengths]), max(lengths), {"corpus": "random"})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, which has no folder in it."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tensors(path: Path) -> dict[str, bytes]:
    """Every tensor's bytes."""
    return {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors}


def types(path: Path) -> dict[str, str]:
    """Every tensor's type."""
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def keys(path: Path) -> dict[str, Any]:
    """quantkit's own keys of a GGUF."""
    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if name.startswith("quantkit.")}


@dataclass(frozen=True)
class Case:
    """A checkpoint and the folder that runs write into, the file M.gguf or M-TYPE.gguf of several."""

    source: Path
    folder: Path

    def path(self, mix: str | None = None) -> Path:
        return self.folder / ("M.gguf" if mix is None else f"M-{mix.upper()}.gguf")

    def run(
        self,
        *mixes: str,
        tokens: TokenSet | None = None,
        min_tokens: int = 32,
        precision: str = "float32",
        rules: tuple[str, ...] = (),
        source: Path | None = None,
        **options: Any,
    ) -> CompensatedResult:
        """Run to the end, with Q4_K_M unless told otherwise."""
        mixes = mixes or ("q4_k_m",)
        targets = [
            Target(self.path(mix if len(mixes) > 1 else None), recipe_from_options(mix, tensor_types=rules))
            for mix in mixes
        ]
        calibration = Calibration(tokens or token_set(), min_tokens, precision=precision)
        return write_compensated(source or self.source, targets, calibration, quiet=True, **options)

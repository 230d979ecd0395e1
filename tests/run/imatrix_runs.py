"""What tests of interrupted calibrations share: token ids, and what a run leaves in its folder."""

from pathlib import Path

import numpy as np

from quantkit.calibration.tokens import TokenSet

OUTPUTS = ("i.gguf", "i.coverage.json")
NAMES = ["i.coverage.json", "i.coverage.png", "i.gguf"]


def token_set(seed: int = 0, lengths: tuple[int, ...] = (64,) * 8) -> TokenSet:
    ids = np.random.default_rng(seed).integers(0, 500, sum(lengths)).astype(np.int32)
    return TokenSet(ids, np.cumsum([0, *lengths]), max(lengths), {"corpus": "random"})


def outputs(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in OUTPUTS]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())

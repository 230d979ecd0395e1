"""The fixture checkpoint quantized by quantkit, each mix once."""

from __future__ import annotations

from pathlib import Path

from held_out import CHECKPOINT

from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf.convert import write_gguf
from quantkit.run.gguf.plan import DEFAULT_SPLIT


class GGUFFiles:
    """Files of one folder, written when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: dict[tuple[str, int], tuple[Path, ...]] = {}

    def write(self, mix: str, split_max_size: int = DEFAULT_SPLIT) -> tuple[Path, ...]:
        """Return the checkpoint in the mix, one path per part."""
        key = (mix, split_max_size)
        if key not in self.written:
            out = self.folder / f"{mix}-{split_max_size}.gguf"
            recipe = recipe_from_options(mix)
            result = write_gguf(CHECKPOINT, out, recipe, split_max_size=split_max_size, threads=1, quiet=True)
            self.written[key] = result.outputs
        return self.written[key]

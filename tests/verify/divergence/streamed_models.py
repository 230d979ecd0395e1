"""The fixture quantized in several ways, each once, and passages of its held-out texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from quantkit.calibration.tokens import TokenSet
from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf.convert import write_gguf
from quantkit.run.int4.quantize import quantize_int4
from quantkit.run.int4.settings import DEFAULT_FORMATS, Method, choose_settings
from quantkit.verify.records import Passage

LENGTH = 256
# Tokens of each text that the quantizers see; passages are of what follows.
CALIBRATION = 1024


class QuantizedModels:
    """Models made from the checkpoint in `source`, in `folder`, when they are first asked for; several may share it."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source = source
        self.folder = folder
        folder.mkdir(exist_ok=True)
        tokenizer = AutoTokenizer.from_pretrained(source)
        self._texts = {
            name: np.array(tokenizer((source / "heldout" / f"text_{name}.txt").read_text())["input_ids"], np.int32)
            for name in ("code", "docs")
        }

    def passages(self, each: int = 2, length: int = LENGTH) -> list[Passage]:
        """`each` passages of `length` tokens of either text."""
        starts = range(CALIBRATION, CALIBRATION + each * length, length)
        return [
            Passage(domain, f"{domain} {start}", ids[start : start + length])
            for domain, ids in self._texts.items()
            for start in starts
        ]

    def gguf(self, mix: str) -> Path:
        """The checkpoint as a GGUF of this mix."""
        out = self.folder / f"{mix}.gguf"
        if not out.exists():
            write_gguf(self.source, out, recipe_from_options(mix), threads=2, quiet=True)
        return out

    def int4(self, method: str, attention: str = "bf16") -> Path:
        """The checkpoint in 4 bits, in the method's own format."""
        out = self.folder / f"{method}-{attention}"
        if not out.exists():
            settings = choose_settings(
                Method(method), attention=attention, format_name=DEFAULT_FORMATS[Method(method)], min_tokens=64
            )
            parts = [ids[:CALIBRATION] for ids in self._texts.values()]
            starts = np.arange(0, len(parts) * CALIBRATION + 1, LENGTH)
            tokens = TokenSet(np.concatenate(parts), starts, LENGTH, {"corpus": "held out"})
            quantize_int4(self.source, out, settings, None if method == "rtn" else tokens, quiet=True)
        return out

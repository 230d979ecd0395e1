"""What belongs to no single model of a source: card, licence, files that an upload left."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from quantkit.audit.files import AuditFiles, in_folder
from quantkit.audit.folder import Folder
from quantkit.audit.gguf_model import GGUFModel
from quantkit.model import minimax_m2

CARD = "README.md"
LICENCES = re.compile(r"(LICEN[SC]E|COPYING)([.-].*)?", re.IGNORECASE)
FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
NEWEST = "MiniMax-M2.7"
# Positions that M2.7 has; M2, M2.1 and M2.5 have 196,608.
NEWEST_CONTEXT = 204_800


@dataclass(frozen=True, eq=False)
class Repository:
    """All files of a source with the models that were found in them."""

    files: AuditFiles
    folders: Sequence[Folder]
    ggufs: Sequence[GGUFModel]

    @property
    def has_card(self) -> bool:
        return CARD in self.files.sizes

    @cached_property
    def card(self) -> dict[str, Any] | None:
        """The metadata of README.md; None where there are none, or they are no YAML mapping."""
        if not self.has_card:
            return None
        match = FRONT_MATTER.match(self.files.read_all(CARD).decode("utf-8", errors="replace"))
        try:
            value = yaml.safe_load(match[1]) if match else None
        except (yaml.YAMLError, RecursionError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    @cached_property
    def licences(self) -> dict[str, str]:
        """The licence files at the top, with their text."""
        paths = in_folder(self.files, "", lambda name: LICENCES.fullmatch(name) is not None)
        return {path: self.files.read_all(path).decode("utf-8", errors="replace") for path in paths}

    @property
    def base_models(self) -> list[str]:
        """`base_model` of the card."""
        value = (self.card or {}).get("base_model")
        values = value if isinstance(value, list) else [value]
        return [name for name in values if isinstance(name, str)]

    @cached_property
    def base(self) -> str | None:
        """Which of the family it is, by card, name, keys or context length; None where nothing tells."""
        told = [*self.base_models, self.files.name]
        told += [str(model.keys.get("general.base_model.0.name", "")) for model in self.ggufs]
        # The longest name first: MiniMax-M2 is in all of them.
        for name in sorted(minimax_m2.FAMILY, key=len, reverse=True):
            if any(
                re.search(re.escape(name) + r"(?![0-9.])|" + re.escape(name) + r"\.(?![0-9])", text) for text in told
            ):
                return name
        contexts = [folder.config.get("max_position_embeddings") for folder in self.folders]
        contexts += [model.number("context_length") for model in self.ggufs]
        return NEWEST if NEWEST_CONTEXT in contexts else None

"""Corpora: named sets of text and dialogues, rendered by the checkpoint's own template and packed into token ids."""

from __future__ import annotations

from quantkit.calibration.corpora.build import build_tokens, describe_rejections, tokens_for
from quantkit.calibration.corpora.manifest import Corpus, Source, find_corpus, shipped_corpora

__all__ = [
    "Corpus",
    "Source",
    "build_tokens",
    "describe_rejections",
    "find_corpus",
    "shipped_corpora",
    "tokens_for",
]

"""Texts to passages of token ids, made once with the reference's tokenizer: both models score the same ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantkit.calibration.corpora.build import build_tokens
from quantkit.calibration.corpora.manifest import single_file
from quantkit.calibration.corpora.render import ChatTokenizer
from quantkit.errors import BadInput
from quantkit.verify.records import Passage

# As in llama-perplexity and in `quantkit perplexity`.
PASSAGE_TOKENS = 512
SUFFIXES = (".txt", ".jsonl")


def shipped_texts() -> list[Path]:
    """The texts that come with quantkit, one file per domain."""
    return sorted((Path(__file__).resolve().parents[1] / "shipped" / "texts").glob("*.jsonl"))


def passages_of(files: Sequence[Path], tokenizer: ChatTokenizer, *, context: int, vocab: int) -> list[Passage]:
    """Cut every file into passages of at most PASSAGE_TOKENS; the file's name is the domain.

    Chats go through the chat template. Raises BadInput for a file that cannot be read or gives nothing to score, and
    for two files of one name.
    """
    passages: list[Passage] = []
    seen: dict[str, Path] = {}
    for path in files:
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            raise BadInput(f"--text {path}: {'no such file' if not path.exists() else 'not a .txt or .jsonl file'}")
        if path.stem in seen:
            raise BadInput(f"--text {path}: {seen[path.stem]} has the same name, which is its domain; rename one")
        seen[path.stem] = path
        length = min(PASSAGE_TOKENS, context)
        tokens = build_tokens(
            single_file(path), tokenizer, samples=None, sequence_length=length, context=context, vocab=vocab
        )
        pieces = [tokens.ids[a:b] for a, b in zip(tokens.starts[:-1], tokens.starts[1:], strict=True)]
        usable = [piece for piece in pieces if len(piece) > 1]
        if not usable:
            raise BadInput(f"--text {path}: fewer than two tokens; nothing can be scored")
        passages += [Passage(path.stem, f"{path.stem} {number}", ids) for number, ids in enumerate(usable)]
    return passages


def spread(passages: Sequence[Passage], tokens: int) -> list[int]:
    """Numbers of passages with at most about `tokens` scored tokens, taken from all domains in turn, ascending."""
    waiting: dict[str, list[int]] = {}
    for number, passage in enumerate(passages):
        waiting.setdefault(passage.domain, []).append(number)
    chosen: list[int] = []
    budget = tokens
    while budget > 0 and any(waiting.values()):
        for numbers in waiting.values():
            if numbers and budget > 0:
                chosen.append(numbers.pop(0))
                budget -= passages[chosen[-1]].scored
    return sorted(chosen)

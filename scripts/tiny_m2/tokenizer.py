"""Train the fixture's byte-level BPE: GPT-4o split expression, MiniMax special tokens after the merges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY_SIZE = 4096
"""Rows of the embedding; a multiple of 128, with a few unused ids after the last special token."""
BPE_TOKENS = 4064

GPT4O_SPLIT = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
])  # fmt: skip

PAD, ROLE, END, UNKNOWN, BEGIN = "]!p~[", "]~b]", "[e~[", "]!d~[", "]~!b["
THINK, END_THINK = "<think>", "</think>"
TOOL_CALL, END_TOOL_CALL = "<minimax:tool_call>", "</minimax:tool_call>"
ADDED_TOKENS: tuple[tuple[str, bool], ...] = (
    (PAD, True), (ROLE, True), (END, True), (UNKNOWN, True),
    ("]<]start of image[>[", True), ("]<]end of image[>[", True), ("]<]vision pad[>[", True), (BEGIN, True),
    (THINK, False), (END_THINK, False), (TOOL_CALL, False), (END_TOOL_CALL, False),
)  # fmt: skip
"""Literal and `special` flag of every added token, in id order."""


def weighted_texts(texts: list[str], dialogues: list[str], words: list[str]) -> Iterator[str]:
    """Yield the learning material: text heads, dialogues, and every value word often enough to become one token."""
    yield from (text[:20_000] for text in texts)
    yield from dialogues
    for word in words:
        yield f' {word} "{word}"' * 500


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Learn the merges from texts and append the added tokens."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(GPT4O_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_TOKENS, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in ADDED_TOKENS])
    return tokenizer

"""A corpus to token ids for one checkpoint, with the account of where every token comes from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.calibration.corpora.manifest import Corpus, find_corpus, single_file
from quantkit.calibration.corpora.pack import Taken, pack, pieces
from quantkit.calibration.corpora.render import ChatTokenizer, load_tokenizer
from quantkit.calibration.corpora.rows import open_rows
from quantkit.calibration.tokens import TokenSet
from quantkit.errors import BadInput


def tokens_for(
    calibration: str, folder: Path, *, samples: int | None, sequence_length: int | None, context: int, vocab: int
) -> TokenSet:
    """Token ids of the corpus `calibration` (a shipped name or a file) for the checkpoint in `folder`.

    `samples` and `sequence_length` None take what the corpus states. Raises BadInput like `build_tokens`.
    """
    return build_tokens(
        find_corpus(calibration),
        load_tokenizer(folder),
        samples=samples,
        sequence_length=sequence_length,
        context=context,
        vocab=vocab,
    )


def tokens_of_file(path: Path, folder: Path, *, sequence_length: int, context: int, vocab: int) -> TokenSet:
    """Token ids of all of a .txt or .jsonl file for the checkpoint in `folder`. Raises BadInput like `build_tokens`."""
    if path.suffix.lower() not in (".txt", ".jsonl"):
        raise BadInput(f"{path}: give a file that ends in .txt or .jsonl")
    return build_tokens(
        single_file(path),
        load_tokenizer(folder),
        samples=None,
        sequence_length=sequence_length,
        context=context,
        vocab=vocab,
    )


def build_tokens(
    corpus: Corpus,
    tokenizer: ChatTokenizer,
    *,
    samples: int | None,
    sequence_length: int | None,
    context: int,
    vocab: int,
) -> TokenSet:
    """At most `samples` x `sequence_length` tokens of `corpus`: exactly that many where it has them.

    Rows that cannot be rendered are counted in the provenance. Raises BadInput for an empty corpus, for one of which
    no row can be used, for a sequence length above `context`, and for ids outside of `vocab`.
    """
    length = corpus.sequence_length if sequence_length is None else sequence_length
    wanted = corpus.samples if samples is None else samples
    _check_sizes(wanted, length, context)
    streams = []
    for place, source in enumerate(corpus.sources):
        rows, sha256 = open_rows(corpus, source)
        taken = Taken(source, sha256, len(rows))
        count = len(rows)
        order = np.random.default_rng([corpus.seed, place]).permutation(count) if corpus.shuffled else range(count)
        streams.append((taken, pieces(taken, rows, map(int, order), tokenizer, length)))
    budget = None if wanted is None else wanted * length
    documents = list(pack(streams, budget))
    accounts = [taken for taken, _ in streams]
    if not documents:
        raise BadInput(_nothing_usable(corpus, accounts))
    ids = np.concatenate([np.asarray(document, np.int32) for document in documents])
    if int(ids.max()) >= vocab:
        raise BadInput(
            f"{tokenizer.folder}: its tokenizer gives id {ids.max()} but the model's vocabulary has {vocab}; "
            "tokenizer.json and config.json belong to different models"
        )
    starts = np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64)
    return TokenSet(ids, starts, length, _provenance(corpus, tokenizer, accounts, starts, wanted, length))


def describe_rejections(provenance: dict[str, Any]) -> list[str]:
    """Lines for a person: what is missing of the tokens asked for, and which rows were rejected and why."""
    lines = []
    tokens, asked = provenance.get("tokens"), provenance.get("tokens_asked")
    if asked is not None and tokens != asked:
        lines.append(f"{provenance['corpus']}: has {tokens:,} of {asked:,} tokens asked for")
    rejected = provenance.get("rejected", {})
    for reason, count in rejected.get("reasons", {}).items():
        first = rejected["first"].get(reason)
        rows = "1 row" if count == 1 else f"{count:,} rows"
        lines.append(f"{rows} rejected: {reason}" + (f" (first: {first})" if first else ""))
    return lines


def _check_sizes(samples: int | None, length: int, context: int) -> None:
    if length > context:
        raise BadInput(f"sequence length {length} is above the model's context of {context}; give a shorter one")
    if length < 2:
        raise BadInput(f"sequence length {length} is too short; a sequence needs at least 2 tokens")
    if samples is not None and samples < 1:
        raise BadInput(f"{samples} samples asked for; at least 1 is needed")


def _nothing_usable(corpus: Corpus, accounts: list[Taken]) -> str:
    first = [(place, reason) for taken in accounts for reason, place in taken.first.items()]
    if not first:
        return f"{corpus.path}: holds no text; a corpus needs at least one row"
    place, reason = first[0]
    count = sum(taken.reasons.total() for taken in accounts)
    return f"{place}: {reason}; so none of {count} rows can be used"


def _provenance(
    corpus: Corpus,
    tokenizer: ChatTokenizer,
    accounts: list[Taken],
    starts: np.ndarray[Any, np.dtype[np.int64]],
    samples: int | None,
    length: int,
) -> dict[str, Any]:
    """What a reader needs to make the same ids again, or to trust that these are the ones."""
    total = int(starts[-1])
    reasons = sum((taken.reasons for taken in accounts), Counter[str]())
    first = {reason: place for taken in reversed(accounts) for reason, place in taken.first.items()}
    return {
        "corpus": corpus.name,
        "corpus_sha256": corpus.sha256,
        "seed": corpus.seed if corpus.shuffled else None,
        "samples": samples,
        "sequence_length": length,
        "tokens": total,
        "tokens_asked": None if samples is None else samples * length,
        "documents": len(starts) - 1,
        "tokenizer_sha256": tokenizer.sha256,
        "chat_template_sha256": tokenizer.template_sha256,
        "sources": [_account(taken, total) for taken in accounts],
        "rejected": {
            "rows": reasons.total(),
            "reasons": dict(reasons.most_common()),
            "first": first,
        },
    }


def _account(taken: Taken, total: int) -> dict[str, Any]:
    source = taken.source
    return {
        "name": source.name,
        "domain": source.domain,
        "licence": source.licence,
        "origin": source.origin,
        "sha256" if source.hub is None else "revision": taken.sha256,
        "rows": taken.rows,
        "rows_used": taken.used,
        "rows_rejected": taken.reasons.total(),
        "tokens": taken.tokens,
        "share": source.share,
        "share_reached": round(100 * taken.tokens / total, 3),
    }

"""KL divergence of the FP8 fixture to other models on documents that nothing was calibrated with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, MiniMaxM2ForCausalLM
from transformers_reference import logits, logprobs, model_from_checkpoint

FIXTURE = Path(__file__).resolve().parent / "fixtures" / "tiny-m2"
PIECE = 256  # tokens of a text that attend to each other
DIALOGUES, LONGEST = 24, 512
RESAMPLES, MEDIAN_RESAMPLES = 10_000, 1000
Documents = Sequence[list[int]]


@dataclass(frozen=True)
class Divergence:
    """KL divergence of the FP8 model to another in nats.

    Attributes:
        positions: one figure per token [T], the documents one after the other.
        ends: where each document ends in it [D].
        same_top: whether both models hold the same token for the most probable one [T].
    """

    positions: NDArray[np.float64]
    ends: NDArray[np.int64]
    same_top: NDArray[np.bool_]

    @property
    def mean(self) -> float:
        return float(self.positions.mean())

    @property
    def median(self) -> float:
        return float(np.median(self.positions))

    @property
    def sums(self) -> NDArray[np.float64]:
        """Of the positions of each document [D]."""
        return np.array([part.sum() for part in self.documents()])

    @property
    def standard_error(self) -> float:
        """Of the mean, from the documents' sums: positions of a document are not independent."""
        lengths = np.diff(self.ends, prepend=0)
        return float(np.sqrt(((self.sums - self.mean * lengths) ** 2).sum()) / lengths.sum())

    def documents(self) -> list[NDArray[np.float64]]:
        return np.split(self.positions, self.ends[:-1])

    def as_json(self) -> dict[str, float]:
        return {
            "positions": len(self.positions),
            "mean": self.mean,
            "standard_error": self.standard_error,
            "median": self.median,
            "p99": float(np.quantile(self.positions, 0.99)),
            "same_top": float(self.same_top.mean()),
        }


@dataclass(frozen=True)
class Ratio:
    """Left over right, and the 2.5 and 97.5 % bounds when whole documents are drawn again."""

    value: float
    low: float
    high: float


class Ruler:
    """The FP8 fixture in float32, its logits for kinds of documents, and what others lose against it."""

    def __init__(self, kinds: Mapping[str, Documents]) -> None:
        self.reference = model_from_checkpoint(FIXTURE)
        self.kinds = kinds
        # As float32, which is what the model computes: half the memory of probabilities in float64.
        self._expected = {kind: [logits(self.reference, ids) for ids in some] for kind, some in kinds.items()}

    def divergence(self, model: MiniMaxM2ForCausalLM) -> dict[str, Divergence]:
        """Of every kind of documents by itself; `joined` makes one of several."""
        return {kind: self._divergence(kind, model) for kind in self.kinds}

    def _divergence(self, kind: str, model: MiniMaxM2ForCausalLM) -> Divergence:
        found, same = [], []
        for ids, expected in zip(self.kinds[kind], self._expected[kind], strict=True):
            before, after = torch.log_softmax(expected.double(), dim=-1), logprobs(model, ids)
            found.append((before.exp() * (before - after)).sum(-1).numpy())
            same.append((before.argmax(-1) == after.argmax(-1)).numpy())
        return Divergence(np.concatenate(found), np.cumsum([len(part) for part in found]), np.concatenate(same))


def joined(parts: Iterable[Divergence]) -> Divergence:
    """All documents of `parts` as one."""
    parts = list(parts)
    offsets = np.cumsum([0, *(len(part.positions) for part in parts[:-1])])
    return Divergence(
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.ends + offset for part, offset in zip(parts, offsets, strict=True)]),
        np.concatenate([part.same_top for part in parts]),
    )


def ratio_of_means(left: Divergence, right: Divergence) -> Ratio:
    """Over the same documents."""
    assert np.array_equal(left.ends, right.ends)
    over, under = left.sums, right.sums
    draws = np.random.default_rng(0).integers(0, len(over), (RESAMPLES, len(over)))
    low, high = np.quantile(over[draws].sum(1) / under[draws].sum(1), [0.025, 0.975])
    return Ratio(float(over.sum() / under.sum()), float(low), float(high))


def ratio_of_medians(left: Divergence, right: Divergence) -> Ratio:
    """Over the same documents; of all of their positions."""
    assert np.array_equal(left.ends, right.ends)
    over, under = left.documents(), right.documents()
    draws = np.random.default_rng(0).integers(0, len(over), (MEDIAN_RESAMPLES, len(over)))
    found = [_median(over, drawn) / _median(under, drawn) for drawn in draws]
    low, high = np.quantile(found, [0.025, 0.975])
    return Ratio(left.median / right.median, float(low), float(high))


def _median(documents: list[NDArray[np.float64]], drawn: NDArray[np.int64]) -> float:
    return float(np.median(np.concatenate([documents[number] for number in drawn])))


def held_out_documents() -> dict[str, Documents]:
    """The fixture's own held-out code and prose in pieces; and dialogues with their tools."""
    tokenizer = AutoTokenizer.from_pretrained(FIXTURE)
    dialogues = []
    for line in (FIXTURE / "heldout" / "dialogues.jsonl").read_text().splitlines()[:DIALOGUES]:
        row = json.loads(line)
        text = tokenizer.apply_chat_template(row["messages"], tools=row["tools"], tokenize=False)
        dialogues.append(tokenizer(text)["input_ids"][:LONGEST])
    return {
        "code": pieces(tokenizer((FIXTURE / "heldout" / "text_code.txt").read_text())["input_ids"]),
        "docs": pieces(tokenizer((FIXTURE / "heldout" / "text_docs.txt").read_text())["input_ids"]),
        "dialogues": dialogues,
    }


def pieces(ids: list[int]) -> list[list[int]]:
    """Documents of PIECE tokens; what is left at the end is not used."""
    return [ids[first : first + PIECE] for first in range(0, len(ids) - PIECE + 1, PIECE)]

"""What is scored: held-out documents of the fixture, other kinds of text than the calibration set, tool calls."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, MiniMaxM2ForCausalLM

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from held_out_divergence import FIXTURE, Documents, Ruler, held_out_documents, pieces  # noqa: E402
from tiny_m2.evaluate import complete, load_model  # noqa: E402
from transformers_reference import logits  # noqa: E402

HELD_OUT = ("code", "docs", "dialogues")  # the kinds that the calibration set is made of
OTHERS = ("prose", "multilingual")
TEXTS = ROOT / "quantkit" / "verify" / "shipped" / "texts"
OTHER_PIECES = 32
EVERY = 2  # of the prompts that expect tool calls


@dataclass(frozen=True)
class Answer:
    """A prompt and the FP8 model's own greedy answer to it, as token ids."""

    prompt: list[int]
    answer: list[int]


def scored_documents() -> dict[str, Documents]:
    """Documents of HELD_OUT and OTHERS by their kind."""
    tokenizer = AutoTokenizer.from_pretrained(FIXTURE)
    found = held_out_documents()
    for kind in OTHERS:
        rows = [json.loads(line) for line in (TEXTS / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()]
        cut = [piece for row in rows for piece in pieces(tokenizer(row["text"])["input_ids"])]
        found[kind] = cut[:: len(cut) // OTHER_PIECES][:OTHER_PIECES]  # from all texts, so from all languages
    return found


class AnswerKey:
    """The FP8 model's greedy answers to held-out prompts that expect tool calls."""

    def __init__(self, reference: MiniMaxM2ForCausalLM) -> None:
        tokenizer = AutoTokenizer.from_pretrained(FIXTURE)
        rows = [json.loads(line) for line in (FIXTURE / "heldout" / "tool_calls.jsonl").read_text().splitlines()]
        prompts = [
            tokenizer.apply_chat_template(
                row["messages"], tools=row["tools"], add_generation_prompt=True, tokenize=False
            )
            for row in rows[::EVERY]
        ]
        texts = complete(load_model(FIXTURE), tokenizer, prompts)
        answers = [
            Answer(tokenizer(prompt)["input_ids"], tokenizer(text + tokenizer.eos_token)["input_ids"])
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        # An answer longer than the limit has no end, and text may have other tokens than it was written with.
        self.answers = [answer for answer in answers if _gives(reference, answer)]

    def agreement(self, model: MiniMaxM2ForCausalLM) -> float:
        """Share of the prompts that `model` answers greedily with the very tokens of the FP8 model."""
        return sum(_gives(model, answer) for answer in self.answers) / len(self.answers)


def _gives(model: MiniMaxM2ForCausalLM, answer: Answer) -> bool:
    """Whether the greedy answer is this one: each of its tokens is the most probable one after those before it."""
    rows = logits(model, answer.prompt + answer.answer)[len(answer.prompt) - 1 : -1]
    return torch.equal(rows.argmax(-1), torch.tensor(answer.answer))


__all__ = ["FIXTURE", "HELD_OUT", "OTHERS", "AnswerKey", "Ruler", "scored_documents"]

"""Mix dialogues, copy tasks and text into fixed-size streams of whole sequences."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tiny_m2.copying import CopyTasks, Sample
from tiny_m2.dialogues import Dialogue, generate
from tiny_m2.template import render
from tiny_m2.tokenizer import BEGIN, END, ROLE, THINK

PROMPT_SHARE = 0.1
TEXT_LENGTH = 256
SELECT_BLOCK = 256
MAXIMUM_LENGTH = 512


@dataclass(frozen=True)
class Batch:
    """tokens [T] of sequences with the given lengths; positions [N] predict targets [N] with weights [N]."""

    tokens: Tensor
    lengths: list[int]
    positions: Tensor
    targets: Tensor
    weights: Tensor


class DialogueEncoder:
    """Turns dialogues into tokens and loss weights: assistant turns that reason count fully, the rest a little."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.role, self.end, self.think = (tokenizer.token_to_id(t) for t in (ROLE, END, THINK))
        self.assistant = tokenizer.token_to_id("ai")

    def encode(self, dialogue: Dialogue) -> Sample:
        """Return tokens [L] and weights [L], 1 on every token that the model itself has to produce."""
        ids = np.array(self.tokenizer.encode(render(dialogue.messages, dialogue.tools)).ids[:-1])
        weights = np.full(len(ids), PROMPT_SHARE, dtype=np.float32)
        for start in np.flatnonzero(ids[:-3] == self.role):
            if ids[start + 1] == self.assistant and ids[start + 3] == self.think:
                stop = start + int(np.argmax(ids[start:] == self.end))
                weights[start + 5 : stop + 1] = 1
        return ids, weights


@dataclass(frozen=True)
class Mixture:
    """Shares of a batch; bare is the chance that a dialogue comes without its tool list, short and all copying."""

    size: int
    copy: float
    text: float
    bare: float


class Mixer:
    """Deterministic source of batches; `draw(step)` depends only on the seed, the step and the mixture."""

    def __init__(self, tokenizer: Tokenizer, text_tokens: np.ndarray, seed: int) -> None:
        self.encoder, self.copying = DialogueEncoder(tokenizer), CopyTasks(tokenizer)
        self.text, self.seed, self.begin = text_tokens, seed, tokenizer.token_to_id(BEGIN)

    def _text(self, rng: random.Random, length: int) -> Sample:
        start = rng.randrange(len(self.text) - length)
        tokens = self.text[start : start + length].astype(np.int64)
        tokens[0] = self.begin
        return tokens, np.ones(length, dtype=np.float32)

    def _dialogue(self, rng: random.Random, bare: float) -> Sample:
        dialogue = generate(rng)
        if dialogue.category != "none" and rng.random() < bare:
            dialogue.tools = None
        return self.encoder.encode(dialogue)

    def draw(self, step: int, mixture: Mixture) -> Batch:
        """Return a batch of about mixture.size tokens; text fills what dialogues and copy tasks leave over."""
        rng = random.Random(f"{self.seed}/{step}")
        samples: list[Sample] = []
        left = mixture.size
        while left > mixture.size * (1 - mixture.copy):
            samples.append(self.copying.draw(rng))
            left -= len(samples[-1][0])
        while left > mixture.size * mixture.text:
            sample = self._dialogue(rng, mixture.bare)
            if len(sample[0]) <= MAXIMUM_LENGTH:
                samples.append(sample)
                left -= len(sample[0])
        while left > 0:
            length = min(left, TEXT_LENGTH)
            samples.append(self._text(rng, length))
            left -= length
        return self._assemble(samples, np.random.default_rng([self.seed, step]))

    def _assemble(self, samples: list[Sample], rng: np.random.Generator) -> Batch:
        """Join samples; low-weight positions are kept with that probability, so the head computes fewer logits."""
        tokens = np.concatenate([sample[0] for sample in samples])
        next_weights = np.concatenate([np.append(sample[1][1:], 0) for sample in samples])
        kept = np.flatnonzero(rng.random(len(tokens)) < next_weights)
        padding = -len(kept) % SELECT_BLOCK
        weights = np.concatenate([np.ones(len(kept), np.float32), np.zeros(padding, np.float32)])
        kept = np.concatenate([kept, np.zeros(padding, np.int64)])
        stream = torch.from_numpy(tokens)
        positions = torch.from_numpy(kept)
        return Batch(stream, [len(s[0]) for s in samples], positions, stream[positions + 1], torch.from_numpy(weights))

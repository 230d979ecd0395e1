"""Copy curriculum: repeated segments and look-up lists, so that induction heads form early."""

from __future__ import annotations

import random

import numpy as np
from tokenizers import Tokenizer

from tiny_m2.pools import single_words
from tiny_m2.tokenizer import BEGIN, BPE_TOKENS, END

Sample = tuple[np.ndarray, np.ndarray]
_KEYS = ("city person product language word task folder day room color genre currency symbol text path title unit mode "
         "label hour minutes amount source target origin destination item quantity keyword").split()  # fmt: skip


class CopyTasks:
    """Draws (tokens [L], loss weights [L]) samples; only what can be copied carries loss."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.words = single_words()
        ids = [tokenizer.encode(form).ids for word in self.words for form in (word, " " + word)]
        self.word_ids = sorted({i[0] for i in ids if len(i) == 1})
        self.begin, self.end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)

    def draw(self, rng: random.Random) -> Sample:
        """Return one sample of a random kind, 20 to 130 tokens long."""
        return rng.choice((self._repeat, self._repeat, self._lookup, self._respell))(rng)

    def _repeat(self, rng: random.Random) -> Sample:
        """Repeat a segment of random tokens, half the time of value words only, up to six times."""
        length = rng.randint(4, 16) if rng.random() < 0.7 else rng.randint(17, 40)
        alphabet = self.word_ids if rng.random() < 0.5 else range(BPE_TOKENS)
        segment = [rng.choice(alphabet) for _ in range(length)]
        tokens = [self.begin] + segment * rng.randint(2, max(2, min(6, 96 // length)))
        weights = np.ones(len(tokens), dtype=np.float32)
        weights[: len(segment) + 2] = 0
        return np.array(tokens), weights

    def _lookup(self, rng: random.Random) -> Sample:
        """List key and value pairs, then ask for some of the values in another order."""
        count = rng.randint(3, 8)
        pairs = list(zip(rng.sample(_KEYS, count), rng.sample(self.words, count), strict=True))
        listing = "\n".join(rng.choice((f"The {key} is {value}.", f"with {key} {value},")) for key, value in pairs)
        asked = rng.sample(pairs, min(count, 5))
        answers = [(f'<parameter name="{key}">', f"{value}</parameter>\n") for key, value in asked]
        return self._spans(listing + "\n\n", answers)

    def _respell(self, rng: random.Random) -> Sample:
        """Give words in a sentence, then each again as it was and as a tagged value."""
        words = rng.sample(self.words, rng.randint(2, 8))
        quoted = [("", f" {word}") for word in words]
        tagged = [("", f'<parameter name="{word}">{word}</parameter>') for word in words]
        return self._spans(" ".join(words) + "\n", [*quoted, ("\n", ""), *tagged])

    def _spans(self, prompt: str, parts: list[tuple[str, str]]) -> Sample:
        """Encode a prompt and (given, scored) text pairs; only scored text carries loss."""
        tokens, weights = [self.begin], [0.0]
        pieces = [(prompt, 0.0)]
        for given, scored in parts:
            pieces += [(given, 0.0), (scored, 1.0)]
        for text, weight in pieces:
            ids = self.tokenizer.encode(text).ids
            tokens += ids
            weights += [weight] * len(ids)
        return np.array([*tokens, self.end]), np.array([*weights, 0.0], dtype=np.float32)

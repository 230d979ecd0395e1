"""Make the fixture tests/fixtures/tiny-m2: train tokenizer and model, export the official layout, measure.

Run `python scripts/train_tiny_m2.py --work DIR` to train (again to continue after a stop), then
`python scripts/tiny_m2/evaluate.py tests/fixtures/tiny-m2` for the figures of its README.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a busy neighbour makes spinning threads many times slower
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")  # kernels are compiled per sequence length

import numpy as np
import torch
from tiny_m2.corpus import load_texts
from tiny_m2.dialogues import generate
from tiny_m2.export import export
from tiny_m2.held_out import write_held_out
from tiny_m2.model import Shape
from tiny_m2.pools import single_words
from tiny_m2.template import render
from tiny_m2.tokenizer import train_tokenizer, weighted_texts
from tiny_m2.training import Plan, train
from tokenizers import Tokenizer

FIXTURE = Path(__file__).parents[1] / "tests/fixtures/tiny-m2"


def prepare(work: Path, seed: int) -> tuple[Tokenizer, np.ndarray]:
    """Return the tokenizer and the encoded text; what the work folder lacks is made and kept there."""
    tokenizer_path, text_path = work / "tokenizer.json", work / "text.npy"
    if not text_path.exists():
        texts = load_texts(seed)
        if not tokenizer_path.exists():
            rng = random.Random(f"{seed}/tokenizer")
            dialogues = [generate(rng) for _ in range(4000)]
            rendered = [render(dialogue.messages, dialogue.tools) for dialogue in dialogues]
            train_tokenizer(weighted_texts(texts, rendered, single_words())).save(str(tokenizer_path))
        encoded = Tokenizer.from_file(str(tokenizer_path)).encode_batch(texts)
        np.save(text_path, np.concatenate([np.array(e.ids, dtype=np.uint16) for e in encoded]))
    return Tokenizer.from_file(str(tokenizer_path)), np.load(text_path)


def main() -> None:
    """Parse arguments, train, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoint, outside the repository")
    parser.add_argument("--out", type=Path, default=FIXTURE, help="folder of the fixture to replace")
    parser.add_argument("--steps", type=int, default=Plan.steps, help="total; may change when continuing in time")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    plan = replace(Plan(), steps=arguments.steps)
    tokenizer, text = prepare(arguments.work, plan.seed)
    logging.info("vocabulary %d, text tokens %d", tokenizer.get_vocab_size(), len(text))
    model = train(plan, Shape(), tokenizer, text, arguments.work)
    export(arguments.out, model.state_dict(), Shape(), tokenizer)
    write_held_out(arguments.out / "heldout", plan.seed)


if __name__ == "__main__":
    main()

"""GGUFs of the fixture and passages of its held-out text, with what is awkward to score."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf.convert import write_gguf
from quantkit.run.gguf.plan import DEFAULT_SPLIT
from quantkit.verify.records import Passage

TAIL = 40
# Characters of several tokens each, and end-of-turn tokens in the middle.
AWKWARD = "]~!b[]~b]user\nWie geht's? 漢字 🙂🙃 é ö[e~[\n]~b]ai\n<think>naïve 日本語</think>[e~[\nand on"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small products on a shared machine: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def fixture_gguf(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write the fixture in a mix when it is first asked for."""
    folder = tmp_path_factory.mktemp("mixes")

    def write(mix: str) -> Path:
        out = folder / f"{mix}.gguf"
        if not out.exists():
            recipe = recipe_from_options(mix)
            write_gguf(tiny_m2, out, recipe, split_max_size=DEFAULT_SPLIT, threads=1, quiet=True)
        return out

    return write


@pytest.fixture(scope="session")
def fixture_tokenizer(tiny_m2: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_m2)


@pytest.fixture(scope="session")
def passages(tiny_m2: Path, fixture_tokenizer: PreTrainedTokenizerBase) -> list[Passage]:
    """The awkward text and the ends of two dialogues."""
    texts = [AWKWARD]
    for line in (tiny_m2 / "heldout" / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()[:2]:
        chat = json.loads(line)
        texts.append(fixture_tokenizer.apply_chat_template(chat["messages"], tools=chat.get("tools"), tokenize=False))
    ids = [fixture_tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    ids[1:] = [tokens[-TAIL:] for tokens in ids[1:]]
    return [Passage("tools", f"tools {n}", np.array(tokens, np.int32)) for n, tokens in enumerate(ids)]

"""Tokenizer keys against what transformers makes of the same files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest
from transformers import AutoTokenizer

from quantkit.errors import BadInput
from quantkit.formats.gguf.tokenizer import sampling_pairs, tokenizer_pairs


@pytest.fixture(scope="module")
def keys(tiny_m2: Path) -> dict[str, object]:
    vocab = json.loads((tiny_m2 / "config.json").read_text())["vocab_size"]
    return {pair.key: pair.value for pair in tokenizer_pairs(tiny_m2, vocab, "minimax-m2")}


def test_tokens_and_types_are_those_of_transformers(tiny_m2: Path, keys: dict[str, object]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_m2)
    by_id = {index: text for text, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == json.loads((tiny_m2 / "config.json").read_text())["vocab_size"]
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if index not in by_id:
            assert kind == gguf.TokenType.UNUSED
            continue
        assert token == by_id[index]
        if index in added:
            expected = gguf.TokenType.CONTROL if added[index].special else gguf.TokenType.USER_DEFINED
        else:
            expected = gguf.TokenType.NORMAL
        assert kind == expected, token


def test_special_ids_and_template(tiny_m2: Path, keys: dict[str, object]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_m2)
    assert keys["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert keys["tokenizer.ggml.bos_token_id"] == tokenizer.bos_token_id
    assert keys["tokenizer.ggml.pre"] == "minimax-m2"
    assert keys["tokenizer.chat_template"] == (tiny_m2 / "chat_template.jinja").read_text()


def test_sampling_defaults_come_from_generation_config(tiny_m2: Path) -> None:
    pairs = {pair.key: pair.value for pair in sampling_pairs(tiny_m2)}
    assert pairs == {"general.sampling.top_k": 40, "general.sampling.top_p": 0.95, "general.sampling.temp": 1.0}


def test_a_token_beyond_the_embedding_is_refused(tiny_m2: Path) -> None:
    with pytest.raises(BadInput, match=r"tokenizer\.json.*the embedding has 100 rows"):
        tokenizer_pairs(tiny_m2, 100, "minimax-m2")


def test_a_tokenizer_without_end_of_turn_is_refused(tiny_m2: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_m2 / "tokenizer.json", tmp_path)
    with pytest.raises(BadInput, match="end-of-turn"):
        tokenizer_pairs(tmp_path, 10**5, "minimax-m2")

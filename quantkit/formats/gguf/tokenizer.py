"""tokenizer.json and its sidecars as GGUF's `tokenizer.*` keys: what a byte-level BPE vocabulary needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf

from quantkit.checkpoint.index import read_json
from quantkit.errors import BadInput
from quantkit.formats.gguf.metadata import Pair, array, boolean, int32, string, uint32

# Added tokens of this look are control tokens in llama.cpp even where the tokenizer does not flag them as special.
LOOKS_SPECIAL = re.compile(r"<\|.*\|>|<unused.*>|<pad>|<mask>", re.DOTALL)

REMEDY = "a GGUF carries its tokenizer; download the checkpoint's tokenizer files"


def tokenizer_pairs(folder: Path, vocab: int, pre: str) -> list[Pair]:
    """Return the tokenizer keys of the checkpoint in `folder`, padded to `vocab` entries.

    `pre` names the split expression as llama.cpp knows it. Raises BadInput when tokenizer.json is missing, is not a
    byte-level BPE, or holds more tokens than the embedding has rows.
    """
    path = folder / "tokenizer.json"
    raw = read_json(path, REMEDY)
    model = raw.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise BadInput(f"{path}: not a byte-level BPE tokenizer; {REMEDY}")
    tokens, types = _tokens(model["vocab"], raw.get("added_tokens") or [], vocab, path)
    special = _special_vocab(folder, vocab)
    if not special.merges or not all(isinstance(merge, str) for merge in special.merges):
        raise BadInput(f"{path}: holds no merges, or not two texts in each; {REMEDY}")
    pairs = [
        string("tokenizer.ggml.model", "gpt2"),
        string("tokenizer.ggml.pre", pre),
        array("tokenizer.ggml.tokens", tokens),
        array("tokenizer.ggml.token_type", types),
        array("tokenizer.ggml.merges", special.merges),
    ]
    # SpecialVocab reads the ids from tokenizer_config.json, then config.json.
    pairs += [uint32(f"tokenizer.ggml.{_KEY[kind]}", token) for kind, token in special.special_token_ids.items()]
    pairs += [boolean(f"tokenizer.ggml.add_{kind}_token", flag) for kind, flag in _added_tokens(raw, special).items()]
    if "eos" not in special.special_token_ids:
        raise BadInput(f"{folder}: no end-of-turn token in tokenizer_config.json or config.json; {REMEDY}")
    if isinstance(special.chat_template, str):
        pairs.append(string("tokenizer.chat_template", special.chat_template))
    return pairs


_KEY = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # spelt so in the format
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
}


def _added_tokens(raw: dict[str, Any], special: gguf.SpecialVocab) -> dict[str, bool]:
    """Whether the runtime puts bos and eos around a text. A byte-level post-processor adds none."""
    processor = raw.get("post_processor") or {}
    processors = processor.get("processors", [processor])  # SpecialVocab has read it by now: the types are right
    silent = any(entry.get("type") == "ByteLevel" for entry in processors)
    stated: dict[str, bool] = special.add_special_token
    return ({"bos": False, "eos": False} if silent else {}) | stated


def _special_vocab(folder: Path, vocab: int) -> gguf.SpecialVocab:
    # It reads these files without checks of its own.
    if (folder / "tokenizer_config.json").is_file():
        read_json(folder / "tokenizer_config.json", REMEDY)
    try:
        return gguf.SpecialVocab(folder, load_merges=True, n_vocab=vocab)
    except Exception as error:
        text = f"{folder / 'tokenizer.json'} or tokenizer_config.json: not understood"
        raise BadInput(f"{text} ({type(error).__name__}: {error}); {REMEDY}") from None


def _tokens(vocab: dict[str, Any], added: Any, size: int, path: Path) -> tuple[list[str], list[int]]:
    """Return token texts and GGUF token types for ids 0 .. size - 1; ids that no token has become unused padding."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [int(gguf.TokenType.UNUSED)] * size

    def place(index: Any, text: str, kind: gguf.TokenType) -> None:
        if not isinstance(index, int) or not 0 <= index < size:
            raise BadInput(f"{path}: token {text!r} has id {index!r} but the embedding has {size} rows")
        if not _is_utf8(text):
            raise BadInput(f"{path}: token {text!r} is not valid Unicode; {REMEDY}")
        tokens[index], types[index] = text, int(kind)

    for text, index in vocab.items():
        place(index, text, gguf.TokenType.NORMAL)
    if not isinstance(added, list):
        raise BadInput(f"{path}: added_tokens is not a list; {REMEDY}")
    for token in added:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise BadInput(f"{path}: an added token has no content; {REMEDY}")
        control = token.get("special") or LOOKS_SPECIAL.fullmatch(token["content"])
        kind = gguf.TokenType.CONTROL if control else gguf.TokenType.USER_DEFINED
        place(token.get("id"), token["content"], kind)
    return tokens, types


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def sampling_pairs(folder: Path) -> list[Pair]:
    """Return the sampling defaults of generation_config.json, where there is one."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    config = read_json(path, "download it again")
    pairs = []
    top_k = config.get("top_k")
    if isinstance(top_k, int):
        if not -(2**31) <= top_k < 2**31:
            raise BadInput(f"{path}: top_k is {top_k}; a 32-bit number is needed")
        pairs.append(int32("general.sampling.top_k", top_k))
    for key, name in (("top_p", "top_p"), ("temperature", "temp")):
        if isinstance(config.get(key), int | float):
            pairs.append(Pair(f"general.sampling.{name}", "FLOAT32", float(config[key])))
    return pairs

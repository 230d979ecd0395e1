"""Both sides must make the same ids of the same text, or their answers cannot be held against each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantkit.calibration.corpora.render import TOKENIZER_FILES, load_tokenizer
from quantkit.checkpoint.index import read_json
from quantkit.errors import BadInput
from quantkit.verify.client import Client

# Body of POST /tokenize, and the key of the ids in the answer. Special tokens written out in the text count as such.
TOKENIZE: dict[str, tuple[str, str]] = {"vllm": ("prompt", "tokens"), "llama.cpp": ("content", "tokens")}
OPTIONS: dict[str, dict[str, Any]] = {
    "vllm": {"add_special_tokens": False},
    "llama.cpp": {"add_special": False, "parse_special": True},
}


def tokenizer_folder(model: Path | None, given: Path | None) -> Path:
    """Where the tokenizer and the chat template of a model are: the folder given, its own, or its GGUF's."""
    own = model if model is None or model.is_dir() else model.parent
    for folder in (given, own):
        if folder is not None and (folder / TOKENIZER_FILES[0]).is_file():
            return folder
    if given is not None:
        raise BadInput(
            f"--tokenizer {given}: holds no {TOKENIZER_FILES[0]}; give the folder of the original checkpoint"
        )
    raise BadInput(
        f"{model or 'a served model'}: no {TOKENIZER_FILES[0]} beside it; name the folder of the original checkpoint "
        "with --tokenizer"
    )


def check_server_tokenizer(client: Client, probes: Sequence[dict[str, Any]]) -> None:
    """Raise BadInput when the server makes other ids of a probe's text; servers that cannot tell are let through."""
    server = client.server
    if server.engine not in TOKENIZE:
        return
    field, answer = TOKENIZE[server.engine]
    for probe in probes:
        body = {"model": server.model, field: probe["text"]} | OPTIONS[server.engine]
        reply = client.post("/tokenize", body)
        found = reply.get(answer) if isinstance(reply, dict) else None
        if not isinstance(found, list):
            raise BadInput(f"{server.url}: its /tokenize gives no ids; it is not the {server.engine} it seems to be")
        if found != probe["ids"]:
            raise _different(f"{server.engine} at {server.url}", probe, found)


def check_folder_tokenizer(folder: Path, probes: Sequence[dict[str, Any]], vocabulary: dict[str, Any]) -> None:
    """Raise BadInput when the tokenizer in `folder` has another vocabulary, or makes other ids of a probe's text."""
    if read_vocabulary(folder)[1] != vocabulary:
        raise _other_vocabulary(folder)
    tokenizer = load_tokenizer(folder)
    for probe in probes:
        found = tokenizer.tokenizer(probe["text"], add_special_tokens=False, verbose=False)["input_ids"]
        if found != probe["ids"]:
            raise _different(str(folder), probe, found)


def check_gguf_vocabulary(path: Path, vocabulary: dict[str, Any]) -> None:
    """Raise BadInput when the first tokens of a GGUF are not those of the vocabulary."""
    import gguf

    from quantkit.formats.gguf.read import split_parts

    field = gguf.GGUFReader(split_parts(path)[0]).get_field("tokenizer.ggml.tokens")
    tokens = [] if field is None else list(field.contents())
    if _hash(tokens[: vocabulary["size"]]) != vocabulary["sha256"]:
        raise _other_vocabulary(path)


def read_vocabulary(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tokenizer.json of a folder, and how many tokens it has with the hash of them in the order of their ids."""
    from tokenizers import Tokenizer

    path = folder / TOKENIZER_FILES[0]
    data = read_json(path, "the tokenizer of the checkpoint makes the token ids")
    tokenizer = Tokenizer.from_str(json.dumps(data))
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    tokens = [tokenizer.id_to_token(number) or "" for number in range(size)]
    return data, {"size": size, "sha256": _hash(tokens)}


def _hash(tokens: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(tokens).encode("utf-8", "surrogatepass")).hexdigest()


def _other_vocabulary(path: Path) -> BadInput:
    return BadInput(
        f"{path}: its vocabulary is not the reference's; both models must have the same tokenizer: make it again with "
        "the original's tokenizer files, or give the right reference"
    )


def _different(who: str, probe: dict[str, Any], found: Sequence[int]) -> BadInput:
    place = next((n for n, (a, b) in enumerate(zip(found, probe["ids"])) if a != b), min(len(found), len(probe["ids"])))
    return BadInput(
        f"{who}: another tokenizer than the reference's: of {probe['text'][:40]!r} it makes other ids from the "
        f"{place + 1}. on; both models must have the original's tokenizer files"
    )

"""The exact token ids of a calibration run, in memory and as a file that can be saved, shared and reused.

The file is safetensors: `ids` I32 [T], `starts` I64 [D + 1], and the metadata key `quantkit.tokens` with a JSON object
of `sequence_length`, `sha256` and `provenance`. Ids from elsewhere need no metadata: `ids` with `starts`, or `ids` of
shape [S, L] alone, which are S documents of L tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.header import read_header
from quantkit.errors import BadInput
from quantkit.files import write_aside

METADATA_KEY = "quantkit.tokens"
_INTEGERS = frozenset({"I32", "I64"})


@dataclass(frozen=True)
class TokenSet:
    """Documents of token ids. Each document attends only to itself, with positions from 0; nothing is padded.

    `ids` [T] holds all documents one after the other, document d is `ids[starts[d]:starts[d + 1]]` with `starts`
    [D + 1]; no document is longer than `sequence_length`. `provenance` is a JSON object that says where they come from.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    sequence_length: int
    provenance: dict[str, Any]

    def sha256(self) -> str:
        """Hash over ids and starts as little-endian bytes, the same on every machine."""
        digest = hashlib.sha256(self.ids.astype("<i4").tobytes())
        digest.update(self.starts.astype("<i8").tobytes())
        return digest.hexdigest()


def save_tokens(path: Path, tokens: TokenSet) -> None:
    """Write `tokens` aside and give the file its name when complete; an existing file is replaced."""
    from safetensors.numpy import save

    about = {"sequence_length": tokens.sequence_length, "sha256": tokens.sha256(), "provenance": tokens.provenance}
    metadata = {METADATA_KEY: json.dumps(about, ensure_ascii=False, sort_keys=True)}
    raw = save({"ids": tokens.ids, "starts": tokens.starts}, metadata=metadata)
    write_aside(path, [raw])


def load_tokens(path: Path, *, vocab: int, context: int, tokenizer_sha256: str | None = None) -> TokenSet:
    """Read a token file for a model with `vocab` ids and `context` positions, whose tokenizer has this hash.

    Raises BadInput for what is no token file, for a truncated or changed one, for ids or lengths that the model does
    not have, and where the file states another tokenizer than `tokenizer_sha256`.
    """
    ids, starts, about = _read(path)
    _check_starts(path, ids, starts)
    given = TokenSet(ids.astype(np.int32), starts, 0, {})
    if about and about.get("sha256") != given.sha256():
        raise BadInput(f"{path}: the ids do not have the hash that the file states; make or copy it again")
    outside = np.flatnonzero((ids < 0) | (ids >= vocab))
    if len(outside):
        first = int(outside[0])
        raise BadInput(
            f"{path}: id {ids[first]} at position {first} is outside of the model's vocabulary of {vocab}; "
            "these tokens were made for another model"
        )
    longest = int(np.diff(starts).max())
    if longest > context:
        raise BadInput(f"{path}: a document has {longest} tokens but the model's context is {context}; cut it shorter")
    _check_tokenizer(path, about, tokenizer_sha256)
    tokens = TokenSet(given.ids, starts, _sequence_length(path, about, longest), about.get("provenance", {}))
    return tokens if about else _with_origin(tokens, path)


def _read(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        entries = read_header(path)
        _check_entries(path, {name: (entry.dtype, entry.shape) for name, entry in entries.items()})
        with safe_open(path, framework="numpy") as file:
            ids = file.get_tensor("ids")
            starts = file.get_tensor("starts") if "starts" in entries else None
            metadata = file.metadata() or {}
    except OSError as error:
        raise BadInput(f"{path}: cannot read the token file ({error.strerror or error})") from error
    except SafetensorError as error:
        raise BadInput(f"{path}: not a token file: {error}") from error
    if starts is None:
        documents, length = ids.shape
        starts = np.arange(documents + 1) * length
    return ids.reshape(-1).astype(np.int64), starts.astype(np.int64), _parse_metadata(path, metadata)


def _check_entries(path: Path, entries: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    if "ids" not in entries:
        raise BadInput(f"{path}: not a token file: it has no tensor 'ids' (quantkit calibration build makes one)")
    for name in ("ids", "starts"):
        if name in entries and entries[name][0] not in _INTEGERS:
            raise BadInput(f"{path}: tensor {name} is {entries[name][0]}; store token ids as I32 and starts as I64")
    dimensions = len(entries["ids"][1])
    wanted = 1 if "starts" in entries else 2
    if dimensions != wanted or ("starts" in entries and len(entries["starts"][1]) != 1):
        raise BadInput(
            f"{path}: tensor ids has {dimensions} dimensions; store ids [T] with starts [D + 1], or ids [S, L] alone"
        )


def _parse_metadata(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if METADATA_KEY not in metadata:
        return {}
    try:
        about = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: metadata {METADATA_KEY} is not valid JSON ({error})") from error
    if not isinstance(about, dict) or not isinstance(about.get("provenance"), dict):
        raise BadInput(
            f"{path}: metadata {METADATA_KEY} is not the JSON object that quantkit writes; make the file again"
        )
    try:
        json.dumps(about, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadInput(f"{path}: metadata {METADATA_KEY} holds text that is not Unicode; make the file again") from None
    return about


def _check_starts(path: Path, ids: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
    if not len(ids) or len(starts) < 2:
        raise BadInput(f"{path}: holds no tokens")
    if starts[0] != 0 or starts[-1] != len(ids):
        raise BadInput(f"{path}: starts go from {starts[0]} to {starts[-1]}; they must cover ids, from 0 to {len(ids)}")
    wrong = np.flatnonzero(starts[1:] <= starts[:-1])
    if len(wrong):
        raise BadInput(f"{path}: starts do not increase at document {wrong[0]}: every document needs a token or more")


def _check_tokenizer(path: Path, about: dict[str, Any], expected: str | None) -> None:
    # Ids of another tokenizer are text of no language; most of them lie within the vocabulary.
    stated = about.get("provenance", {}).get("tokenizer_sha256")
    if None not in (stated, expected) and stated != expected:
        raise BadInput(
            f"{path}: made with another tokenizer than the checkpoint's; make it again: "
            "quantkit calibration build NAME --tokenizer CHECKPOINT"
        )


def _sequence_length(path: Path, about: dict[str, Any], longest: int) -> int:
    stated = about.get("sequence_length", longest)
    if not isinstance(stated, int) or isinstance(stated, bool) or not longest <= stated < 2**31:
        raise BadInput(f"{path}: a document has {longest} tokens but the file states a sequence length of {stated!r}")
    return stated


def _with_origin(tokens: TokenSet, path: Path) -> TokenSet:
    """Foreign ids carry no provenance: their file name and hash are all that is known."""
    name = os.fsencode(path.name).decode("utf-8", "replace")
    origin = {"corpus": name, "tokens": len(tokens.ids), "tokens_sha256": tokens.sha256()}
    return TokenSet(tokens.ids, tokens.starts, tokens.sequence_length, origin)

"""Token files: what is written comes back, and whatever is wrong with one is said in one line."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantkit.calibration.tokens import METADATA_KEY, TokenSet, load_tokens, save_tokens
from quantkit.errors import BadInput

IDS = np.array([5, 6, 7, 1, 2, 9], np.int32)
STARTS = np.array([0, 3, 6], np.int64)
TOKENS = TokenSet(IDS, STARTS, 4, {"corpus": "own “text”"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.safetensors"


def load(path: Path, vocab: int = 10, context: int = 4) -> TokenSet:
    return load_tokens(path, vocab=vocab, context=context)


def refused(path: Path, *words: str, vocab: int = 10, context: int = 4) -> None:
    with pytest.raises(BadInput) as caught:
        load(path, vocab, context)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    for word in words:
        assert word in line


def test_what_is_saved_comes_back(path: Path) -> None:
    save_tokens(path, TOKENS)
    loaded = load(path)
    assert loaded.ids.dtype == np.int32
    assert loaded.starts.dtype == np.int64
    np.testing.assert_array_equal(loaded.ids, IDS)
    np.testing.assert_array_equal(loaded.starts, STARTS)
    assert (loaded.sequence_length, loaded.provenance) == (4, TOKENS.provenance)
    assert loaded.sha256() == TOKENS.sha256()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_file_is_plain_safetensors(path: Path) -> None:
    save_tokens(path, TOKENS)
    tensors = load_file(path)
    assert {name: (str(array.dtype), array.tolist()) for name, array in tensors.items()} == {
        "ids": ("int32", IDS.tolist()),
        "starts": ("int64", STARTS.tolist()),
    }


def test_hash_is_over_little_endian_bytes() -> None:
    raw = b"".join(int(i).to_bytes(4, "little") for i in IDS) + b"".join(int(s).to_bytes(8, "little") for s in STARTS)
    assert TOKENS.sha256() == hashlib.sha256(raw).hexdigest()
    swapped = TokenSet(IDS.astype(">i4"), STARTS.astype(">i8"), 4, {})
    assert swapped.sha256() == TOKENS.sha256()


def test_hash_knows_where_documents_end() -> None:
    assert TokenSet(IDS, np.array([0, 2, 6]), 4, {}).sha256() != TOKENS.sha256()


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_ids_from_elsewhere(path: Path, kind: type) -> None:
    save_file({"ids": IDS.astype(kind), "starts": STARTS.astype(kind)}, path)
    loaded = load(path)
    np.testing.assert_array_equal(loaded.ids, IDS)
    assert loaded.sequence_length == 3
    assert loaded.provenance["tokens_sha256"] == TOKENS.sha256()


def test_a_table_of_ids_is_one_document_per_row(path: Path) -> None:
    save_file({"ids": IDS.reshape(2, 3)}, path)
    loaded = load(path)
    assert loaded.starts.tolist() == [0, 3, 6]
    assert loaded.sha256() == TOKENS.sha256()


def test_missing(path: Path) -> None:
    refused(path, "No such file")


@pytest.mark.parametrize("left", [0, 7, 60, -1, -8])
def test_truncated(path: Path, left: int) -> None:
    save_tokens(path, TOKENS)
    path.write_bytes(path.read_bytes()[:left])
    refused(path)


@pytest.mark.parametrize("raw", [b"hello, this is text", b"GGUF" + bytes(60), b"\x02" + bytes(7) + b"{}"])
def test_not_a_token_file(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    refused(path)


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({"weight": IDS}, "no tensor 'ids'"),
        ({"ids": IDS.astype(np.float32), "starts": STARTS}, "F32"),
        ({"ids": IDS}, "dimensions"),
        ({"ids": IDS.reshape(2, 3), "starts": STARTS}, "dimensions"),
        ({"ids": IDS, "starts": STARTS.reshape(1, 3)}, "dimensions"),
        ({"ids": IDS, "starts": np.array([0, 3, 5])}, "cover"),
        ({"ids": IDS, "starts": np.array([1, 3, 6])}, "cover"),
        ({"ids": IDS, "starts": np.array([0, 4, 3, 6])}, "increase at document 1"),
        ({"ids": IDS, "starts": np.array([0, 3, 3, 6])}, "increase at document 1"),
        ({"ids": IDS[:0], "starts": np.array([0])}, "no tokens"),
        ({"ids": IDS[:0].reshape(0, 4)}, "no tokens"),
    ],
)
def test_wrong_tensors(path: Path, tensors: dict[str, np.ndarray], word: str) -> None:
    save_file(tensors, path)
    refused(path, word)


@pytest.mark.parametrize("wrong", [-1, 10, 2**31 - 1])
def test_id_outside_of_the_vocabulary(path: Path, wrong: int) -> None:
    ids = IDS.copy()
    ids[4] = wrong
    save_file({"ids": ids, "starts": STARTS}, path)
    refused(path, f"id {wrong} at position 4", "vocabulary of 10")


def test_document_longer_than_the_context(path: Path) -> None:
    save_tokens(path, TOKENS)
    refused(path, "3 tokens", "context is 2", context=2)


def test_changed_ids(path: Path) -> None:
    save_tokens(path, TOKENS)
    raw = path.read_bytes()
    assert raw.endswith(IDS.tobytes())
    path.write_bytes(raw[: -IDS.nbytes] + b"\x04" + raw[1 - IDS.nbytes :])
    refused(path, "hash")


@pytest.mark.parametrize("about", ["", "[]", '"x"', "{}", '{"provenance": 3}', '{"provenance": {}}', "[" * 100_000])
def test_odd_metadata(path: Path, about: str) -> None:
    save_file({"ids": IDS, "starts": STARTS}, path, metadata={METADATA_KEY: about})
    refused(path)


def test_stated_length_shorter_than_a_document(path: Path) -> None:
    about = {"provenance": {}, "sha256": TOKENS.sha256(), "sequence_length": 2}
    save_file({"ids": IDS, "starts": STARTS}, path, metadata={METADATA_KEY: json.dumps(about)})
    refused(path, "sequence length of 2")


def test_tokens_of_another_tokenizer(path: Path) -> None:
    save_tokens(path, dataclasses.replace(TOKENS, provenance={"tokenizer_sha256": "a" * 64}))
    with pytest.raises(BadInput) as caught:
        load_tokens(path, vocab=10, context=4, tokenizer_sha256="b" * 64)
    assert str(caught.value).startswith(f"{path}: made with another tokenizer")
    for same in ("a" * 64, None):
        assert load_tokens(path, vocab=10, context=4, tokenizer_sha256=same).sha256() == TOKENS.sha256()


@pytest.mark.parametrize("metadata", [True, False])
def test_tokens_that_do_not_state_their_tokenizer(path: Path, metadata: bool) -> None:
    if metadata:
        save_tokens(path, TOKENS)
    else:
        save_file({"ids": IDS, "starts": STARTS}, path)
    assert load_tokens(path, vocab=10, context=4, tokenizer_sha256="b" * 64).sha256() == TOKENS.sha256()

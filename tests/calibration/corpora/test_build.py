"""Packing: exact budgets, shares, order, cuts; and the account that goes with the ids."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from corpus_files import FIXTURE, LIMITS, TOKENIZER, chat, result, text_rows, user, write_lines

from quantkit.calibration.corpora.build import build_tokens, describe_rejections
from quantkit.calibration.corpora.manifest import find_corpus
from quantkit.calibration.corpora.render import ChatTokenizer
from quantkit.calibration.corpora.rows import Row
from quantkit.calibration.tokens import TokenSet, load_tokens, save_tokens
from quantkit.errors import BadInput

SOURCE = {"domain": "test", "licence": "none", "origin": "this test"}


def build(name: object, samples: int | None = None, sequence_length: int | None = None, **limits: int) -> TokenSet:
    corpus = find_corpus(str(name))
    return build_tokens(corpus, TOKENIZER, samples=samples, sequence_length=sequence_length, **(LIMITS | limits))


def documents(tokens: TokenSet) -> list[list[int]]:
    return [tokens.ids[a:b].tolist() for a, b in zip(tokens.starts, tokens.starts[1:], strict=False)]


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.fixture
def manifest(tmp_path: Path) -> Any:
    """Write a manifest of files with shares; more keys replace those of the manifest."""

    def write(shares: dict[str, float], **more: Any) -> Path:
        sources = [SOURCE | {"name": name, "file": name, "share": share} for name, share in shares.items()]
        data = {"name": "own", "description": "", "seed": 1, "samples": 4, "sequence_length": 64, "sources": sources}
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump(data | more))
        return path

    return write


@pytest.mark.parametrize(("samples", "length"), [(1, 2), (3, 7), (8, 512), (5, 333), (64, 16)])
def test_the_budget_is_met_exactly(samples: int, length: int) -> None:
    tokens = build("smoke", samples, length)
    assert len(tokens.ids) == samples * length == tokens.provenance["tokens"] == tokens.provenance["tokens_asked"]
    sizes = [len(document) for document in documents(tokens)]
    assert min(sizes) > 0
    assert max(sizes) <= length == tokens.sequence_length
    assert describe_rejections(tokens.provenance) == []


def test_what_is_built_can_be_saved(tmp_path: Path) -> None:
    tokens = build("smoke", 4, 64)
    save_tokens(tmp_path / "t", tokens)
    loaded = load_tokens(tmp_path / "t", vocab=4096, context=64)
    assert loaded.sha256() == tokens.sha256()
    assert loaded.provenance == tokens.provenance


@pytest.mark.parametrize("share", [5, 25, 50, 90])
def test_shares_hold_within_one_document(tmp_path: Path, manifest: Any, share: float) -> None:
    write_lines(tmp_path / "a.jsonl", *text_rows("alpha", 60, 20))
    write_lines(tmp_path / "b.jsonl", *text_rows("beta", 60, 20))
    tokens = build(manifest({"a.jsonl": share, "b.jsonl": 100 - share}, samples=30))
    first, second = tokens.provenance["sources"]
    assert first["tokens"] + second["tokens"] == 30 * 64
    assert abs(first["tokens"] - 30 * 64 * share / 100) <= 64
    assert first["share_reached"] == pytest.approx(100 * first["tokens"] / (30 * 64), abs=0.001)


def test_long_documents_are_cut_into_pieces(tmp_path: Path) -> None:
    (long,) = text_rows("long", 1, 100)
    path = write_lines(tmp_path / "rows.jsonl", long, {"text": "short"})
    ids = ids_of(long["text"])
    assert documents(build(path, sequence_length=64)) == [
        *[ids[n : n + 64] for n in range(0, len(ids), 64)],
        ids_of("short"),
    ]


def test_a_text_file_is_tokenized_whole_and_cut() -> None:
    path = FIXTURE / "heldout" / "text_code.txt"
    ids = ids_of(path.read_text())
    tokens = build(path)
    assert tokens.ids.tolist() == ids
    assert tokens.starts.tolist() == [*range(0, len(ids), 512), len(ids)]
    assert build(path, 3, 100).ids.tolist() == ids[:300]
    assert build(path, 3, 100).starts.tolist() == [0, 100, 200, 300]
    assert tokens.provenance["sources"][0]["licence"] == "unknown"
    assert len(tokens.provenance["sources"][0]["sha256"]) == 64


def test_line_ends_of_a_text_file_stay(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"a\r\nb\rc\n")
    assert build(tmp_path / "t.txt").ids.tolist() == ids_of("a\r\nb\rc\n")


def test_a_file_of_rows_keeps_its_order(tmp_path: Path) -> None:
    rows = text_rows("row", 9, 3)
    path = write_lines(tmp_path / "rows.jsonl", *rows)
    assert documents(build(path)) == [ids_of(row["text"]) for row in rows]


def test_a_manifest_shuffles_by_its_seed(tmp_path: Path, manifest: Any) -> None:
    rows = text_rows("row", 30, 3)
    write_lines(tmp_path / "rows.jsonl", *rows)
    first, again, other = (build(manifest({"rows.jsonl": 100}, seed=seed, samples=100)) for seed in (1, 1, 2))
    expected = Counter(tuple(ids_of(row["text"])) for row in rows)
    assert first.sha256() == again.sha256() != other.sha256()
    assert Counter(map(tuple, documents(first))) == Counter(map(tuple, documents(other))) == expected
    assert documents(first) != [ids_of(row["text"]) for row in rows]


def test_too_little_text_is_said(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"text": "very little"})
    tokens = build(path, 4, 64)
    assert len(tokens.ids) == len(ids_of("very little"))
    assert describe_rejections(tokens.provenance) == [f"rows.jsonl: has {len(tokens.ids)} of 256 tokens asked for"]


def test_rejected_rows_are_counted(tmp_path: Path) -> None:
    orphan = chat(user(), result()).value
    path = write_lines(tmp_path / "rows.jsonl", {"text": "good"}, orphan, {"text": 3}, orphan, {"text": "good too"})
    tokens = build(path)
    assert documents(tokens) == [ids_of("good"), ids_of("good too")]
    assert tokens.provenance["rejected"]["rows"] == 3
    first, second = describe_rejections(tokens.provenance)
    assert first == f"2 rows rejected: tool message without a tool call before it (first: {path}:2)"
    assert second.startswith("1 row rejected: neither a string 'text'")
    assert f"{path}:3" in second


def test_rows_are_tokenized_only_when_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "rows.jsonl", *text_rows("row", 1000, 30))
    seen = []
    encode = ChatTokenizer.encode

    def counted(self: ChatTokenizer, row: Row) -> list[int]:
        seen.append(row)
        return encode(self, row)

    monkeypatch.setattr(ChatTokenizer, "encode", counted)
    build(path, 8, 32)
    assert len(seen) < 10


def test_numbers_that_cannot_be() -> None:
    for samples, length, words in (
        (1, 4097, "above the model's context of 4096"),
        (1, 1, "at least 2"),
        (0, 8, "0 samples"),
    ):
        with pytest.raises(BadInput, match=words):
            build("smoke", samples, length)


def test_tokenizer_of_a_larger_vocabulary() -> None:
    with pytest.raises(BadInput, match="vocabulary has 100"):
        build("smoke", 1, 64, vocab=100)


HUB = SOURCE | {"name": "hub", "share": 100, "hub": "org/set", "revision": "a" * 40}


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A stand-in for the package datasets; the list holds rows, or the error that loading raises, then the calls."""
    content: list[Any] = []

    def load_dataset(*place: Any, **options: Any) -> Any:
        if isinstance(content[0], Exception):
            raise content[0]
        content.append((place, options))
        return content[0]

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return content


def test_hub_data_set(manifest: Any, fake_hub: list[Any]) -> None:
    call = {"id": None, "function": {"name": "f", "arguments": {"a": 1, "b": None}}}
    messages = [user() | {"tool_calls": None}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    fake_hub.append([{"conversation": messages, "tools": None}])
    source = HUB | {"config": "en", "split": "test", "columns": {"messages": "conversation"}}
    tokens = build(manifest({}, sources=[source]))
    expected = [user(), {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}]
    assert tokens.ids.tolist() == TOKENIZER.encode(chat(*expected))
    assert fake_hub[1] == (("org/set", "en"), {"split": "test", "revision": "a" * 40})
    assert tokens.provenance["sources"][0]["revision"] == "a" * 40


def test_hub_offline(manifest: Any, fake_hub: list[Any]) -> None:
    fake_hub.append(ConnectionError("cannot\nreach the Hub"))
    with pytest.raises(BadInput, match=r"org/set: cannot load revision a+ \(ConnectionError: cannot reach the Hub\)"):
        build(manifest({}, sources=[HUB]))


@pytest.mark.parametrize(("package", "name"), [("datasets", "hub"), ("pyarrow", "parquet")])
def test_missing_package(
    tmp_path: Path, manifest: Any, monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    corpus = manifest({}, sources=[HUB]) if name == "hub" else tmp_path / "rows.parquet"
    with pytest.raises(BadInput, match=rf"needs the package {package}; pip install 'quantkit\[calibration\]'"):
        build(corpus)


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"messages": [user(), {"role": "assistant", "content": "Yes."}]}, {"text": "plain"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=None), tmp_path / "rows.parquet")
    tokens = build(tmp_path / "rows.parquet")
    assert documents(tokens)[0] == TOKENIZER.encode(chat(*rows[0]["messages"]))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(BadInput, match="not a readable parquet file"):
        build(tmp_path / "bad.parquet")


def test_provenance_names_everything() -> None:
    corpus = find_corpus("smoke")
    tokens = build("smoke", 2, 64)
    about = tokens.provenance
    assert (about["corpus"], about["corpus_sha256"], about["seed"]) == ("smoke", corpus.sha256, corpus.seed)
    assert about["tokenizer_sha256"] == TOKENIZER.sha256
    assert about["chat_template_sha256"] == TOKENIZER.template_sha256
    (source,) = about["sources"]
    for key in ("name", "domain", "share", "licence", "origin", "sha256"):
        assert source[key] == getattr(corpus.sources[0], key)


def test_another_manifest_is_another_hash(manifest: Any, tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", {"text": "a"})
    one, two = (find_corpus(str(manifest({"rows.jsonl": 100}, seed=seed))) for seed in (1, 2))
    assert one.sha256 != two.sha256
    assert dataclasses.replace(one, sha256=two.sha256, seed=2) == two

"""Manifests: what they may say, and one line for whatever is wrong with one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from corpus_files import LIMITS, TOKENIZER, write_lines

from quantkit.calibration.corpora.build import build_tokens
from quantkit.calibration.corpora.manifest import find_corpus
from quantkit.calibration.corpora.rows import JsonLines, open_rows
from quantkit.errors import BadInput

ABOUT = {"name": "rows", "domain": "test", "share": 100, "licence": "none", "origin": "here"}
HEAD = {"name": "own", "description": "", "seed": 1, "samples": 4, "sequence_length": 64}


def write(path: Path, sources: Any, **head: Any) -> Path:
    data = HEAD | {"sources": sources} | head
    path.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not ...}))
    return path


def refused(name: object, *words: object) -> str:
    with pytest.raises(BadInput) as caught:
        build_tokens(find_corpus(str(name)), TOKENIZER, samples=None, sequence_length=None, **LIMITS)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert str(word) in line
    return line


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "rows.jsonl", {"text": "one"}, {"text": "two"})


def packaged(path: Path, **changed: Any) -> dict[str, Any]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ABOUT | {"packaged": path.name, "sha256": digest, "rows": 2} | changed


def test_packaged_rows(rows: Path) -> None:
    corpus = find_corpus(str(write(rows.with_name("own.yaml"), [packaged(rows)])))
    assert (corpus.name, corpus.seed, corpus.samples, corpus.sequence_length, corpus.shuffled) == (
        "own",
        1,
        4,
        64,
        True,
    )
    found, _ = open_rows(corpus, corpus.sources[0])
    assert isinstance(found, JsonLines)
    assert [found.row(n).value for n in range(2)] == [{"text": "one"}, {"text": "two"}]
    assert found.row(1).place == f"{rows}:2"


def test_columns_have_names(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"body": "hello", "text": 3})
    source = ABOUT | {"file": path.name, "columns": {"text": "body"}}
    corpus = find_corpus(str(write(tmp_path / "own.yaml", [source])))
    assert open_rows(corpus, corpus.sources[0])[0].row(0).value == {"text": "hello"}


@pytest.mark.parametrize("changed", [{"sha256": "0" * 64}, {"rows": 3}])
def test_packaged_file_that_was_changed(rows: Path, changed: dict[str, Any]) -> None:
    refused(write(rows.with_name("own.yaml"), [packaged(rows, **changed)]), rows, "own.yaml states", "restore")


def test_missing_file(rows: Path) -> None:
    path = write(rows.with_name("own.yaml"), [packaged(rows)])
    rows.unlink()
    refused(path, rows, "No such file")


HUB = ABOUT | {"hub": "org/set"}
FILE = ABOUT | {"file": "rows.jsonl"}
WRONG: dict[str, tuple[Any, dict[str, Any]]] = {
    "sources: this field is required": (..., {}),
    "sources: expected a list": ("rows.jsonl", {}),
    "sources[0]: expected a mapping": (["rows.jsonl"], {}),
    "at least 1 item": ([], {}),
    "sources[0]: give one of packaged, file and hub": ([ABOUT], {}),
    "give one of": ([FILE | {"hub": "org/set", "revision": "a" * 40}], {}),
    "needs the revision of one commit": ([HUB], {}),
    "sources[0].revision": ([HUB | {"revision": "main"}], {}),
    "sources[0].hub": ([HUB | {"hub": "https://x", "revision": "a" * 40}], {}),
    "revision and config belong to hub": ([FILE | {"revision": "a" * 40}], {}),
    "a packaged file needs sha256 and rows": ([ABOUT | {"packaged": "rows.jsonl"}], {}),
    "sources[0].packaged": ([packaged(Path(__file__)) | {"packaged": "../rows.jsonl"}], {}),
    "only .txt, .jsonl, .parquet": ([ABOUT | {"file": "rows.csv"}], {}),
    "sources[0].licence: this field is required": ([{k: v for k, v in FILE.items() if k != "licence"}], {}),
    "sources[0].url: unknown field": ([FILE | {"url": "x"}], {}),
    "sources[0].sha256": ([FILE | {"sha256": "abc"}], {}),
    "sources[0].share": ([FILE | {"share": 0}], {}),
    "add up to 99, not 100": ([FILE | {"share": 99}], {}),
    "two sources have the same name": ([FILE | {"share": 50}, FILE | {"share": 50}], {}),
    "samples": ([FILE], {"samples": 0}),
    "samples: Input should be a valid integer": ([FILE], {"samples": "many"}),
    "sequence_length": ([FILE], {"sequence_length": 1}),
    "seed": ([FILE], {"seed": -1}),
    "name: this field is required": ([FILE], {"name": ...}),
    "size: unknown field": ([FILE], {"size": 3}),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_manifest(rows: Path, words: str) -> None:
    sources, head = WRONG[words]
    path = write(rows.with_name("own.yaml"), sources, **head)
    assert refused(path, words).startswith(f"{path}: ")


@pytest.mark.parametrize("raw", [b"", b"[]", b"just text", b"a: [", b"\xff\xfe", b"a: !!python/object:os.system x"])
def test_not_a_manifest(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(raw)
    refused(path, path)


@pytest.mark.parametrize("name", ["agentik", "smoke.zip", "", "no/such/place"])
def test_unknown_name(name: str) -> None:
    refused(name, "unknown calibration corpus", "agentic, code, smoke")


def test_near_name() -> None:
    refused("agentik", "did you mean agentic?")

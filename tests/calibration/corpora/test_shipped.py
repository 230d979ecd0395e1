"""The shipped corpora: every row is accepted, shares and hashes hold, nothing of the evaluation text is inside."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from corpus_files import FIXTURE, LIMITS, ROOT, SHIPPED, TOKENIZER, lines_of
from test_render import second_opinion

from quantkit.calibration.corpora.build import build_tokens, tokens_for
from quantkit.calibration.corpora.check import row_problem
from quantkit.calibration.corpora.manifest import find_corpus, shipped_corpora
from quantkit.calibration.corpora.rows import Row, open_rows

NAMES = ("agentic", "code", "smoke")
TARGET = {"code": 50, "tools": 25, "reasoning": 10, "multilingual": 10, "chat": 5}
PERMISSIVE = {"MIT", "BSD-3-Clause", "BSD-2-Clause", "Apache-2.0", "ISC"}
WINDOW = 200
FILES = sorted(path.name for path in SHIPPED.glob("*.jsonl"))


def test_the_shipped_names() -> None:
    assert tuple(shipped_corpora()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_manifest_is_right_about_its_files(name: str) -> None:
    corpus = find_corpus(name)
    assert corpus.name == name
    for source in corpus.sources:
        rows, sha256 = open_rows(corpus, source)
        assert (len(rows), sha256) == (source.rows, source.sha256)


def test_shares_of_agentic_are_the_targets() -> None:
    shares: dict[str, float] = {}
    for source in find_corpus("agentic").sources:
        shares[source.domain] = shares.get(source.domain, 0) + source.share
    assert shares == TARGET


@pytest.mark.parametrize("file", FILES)
def test_every_row_is_accepted(file: str) -> None:
    rows = lines_of(SHIPPED / file)
    for number, value in enumerate(rows, 1):
        assert row_problem(value) is None, f"{file}:{number}"
        if "messages" in value:
            row = Row(value, f"{file}:{number}")
            assert TOKENIZER.render(row)
            assert second_opinion(row)


def test_every_packaged_text_names_package_and_licence() -> None:
    for file in FILES:
        for number, value in enumerate(lines_of(SHIPPED / file), 1):
            if "package" in value:
                assert value["licence"] in PERMISSIVE, f"{file}:{number}"
            else:
                assert "text" not in value, f"{file}:{number}: text of unknown origin"


def test_sizes() -> None:
    assert sum((SHIPPED / file).stat().st_size for file in FILES) <= 6_000_000
    assert (SHIPPED / "smoke.jsonl").stat().st_size <= 64_000


def windows(text: str, step: int) -> set[int]:
    return {hash(text[start : start + WINDOW]) for start in range(0, max(len(text) - WINDOW, 0) + 1, step)}


def strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in strings(part)]


def evaluation_texts() -> list[str]:
    folder = FIXTURE / "heldout"
    plain = [path.read_text() for path in sorted(folder.glob("*.txt"))]
    rows = [row for path in sorted(folder.glob("*.jsonl")) for row in lines_of(path)]
    return plain + [text for row in rows for text in strings(row)]


def test_evaluation_text_is_not_in_any_corpus() -> None:
    """No run of 200 characters in common, and no whole held-out request."""
    evaluation = evaluation_texts()
    known = set().union(*(windows(text, 1) for text in evaluation if len(text) >= WINDOW))
    requests = {text for text in evaluation if len(text) > 25 and " " in text}
    known_requests = {text.strip() for text in requests}
    for file in FILES:
        for value in lines_of(SHIPPED / file):
            for text in strings(value):
                assert text.strip() not in known_requests
                if len(text) >= WINDOW:
                    assert not known & windows(text, 1), text[:80]


def test_the_window_test_can_find_something() -> None:
    text = (FIXTURE / "heldout" / "text_code.txt").read_text()
    assert windows(text, 1) & windows("x" * 37 + text[500:1000] + "y", 1)


def test_shares_at_a_small_budget() -> None:
    tokens = build_tokens(find_corpus("agentic"), TOKENIZER, samples=64, sequence_length=512, **LIMITS)
    assert len(tokens.ids) == 64 * 512
    reached: dict[str, float] = {}
    for source in tokens.provenance["sources"]:
        reached[source["domain"]] = reached.get(source["domain"], 0) + source["share_reached"]
    for domain, share in TARGET.items():
        assert abs(reached[domain] - share) < 2, reached
    assert tokens.provenance["rejected"]["rows"] == 0


def test_the_same_ids_in_another_process() -> None:
    program = (
        "from pathlib import Path; from quantkit.calibration.corpora import tokens_for; "
        f"print(tokens_for('smoke', Path({str(FIXTURE)!r}), samples=None, sequence_length=None, **{LIMITS}).sha256())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    here = tokens_for("smoke", FIXTURE, samples=None, sequence_length=None, **LIMITS)
    assert other.stdout.strip() == here.sha256()
    assert json.loads(json.dumps(here.provenance)) == here.provenance


def test_the_wheel_carries_the_data() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = config["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["calibration"] == "quantkit/calibration/data"
    assert {path.suffix for path in Path(SHIPPED).iterdir()} == {".yaml", ".jsonl", ".txt"}

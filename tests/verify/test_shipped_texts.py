"""The shipped texts: enough of them, of many kinds, fit for the template, and not in the calibration data."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from quantkit.calibration.corpora.render import load_tokenizer
from quantkit.calibration.corpora.rows import Row

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "quantkit" / "verify" / "shipped" / "texts"
DOMAINS = ("code", "multilingual", "prose", "tools")
WINDOW = 60  # characters; shorter pieces are shared by chance

ROWS: dict[str, list[dict[str, Any]]] = {
    domain: [json.loads(line) for line in (FOLDER / f"{domain}.jsonl").read_text("utf-8").splitlines()]
    for domain in DOMAINS
}


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings(each)


def windows(text: str) -> Iterator[str]:
    return (text[start : start + WINDOW] for start in range(len(text) - WINDOW + 1))


def said(row: dict[str, Any]) -> Iterator[str]:
    """What a row says, without the definitions of its tools."""
    return strings({name: value for name, value in row.items() if name != "tools"})


def test_there_is_enough_text_in_every_domain() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == list(DOMAINS)
    for domain, rows in ROWS.items():
        size = sum(len(text.encode()) for row in rows for text in said(row))
        assert (28_000 if domain == "tools" else 45_000) <= size <= 66_000, (domain, size)
        assert len(rows) >= 10


def test_nothing_of_it_is_in_calibration_or_held_out_data() -> None:
    ours = {window for rows in ROWS.values() for row in rows for text in strings(row) for window in windows(text)}
    others = [*(ROOT / "calibration").glob("*.jsonl"), *(ROOT / "tests/fixtures/tiny-m2/heldout").iterdir()]
    assert len(others) > 10
    for path in others:
        text = path.read_text("utf-8")
        rows = map(json.loads, text.splitlines()) if path.suffix == ".jsonl" else [text]
        shared = next(
            (window for row in rows for each in strings(row) for window in windows(each) if window in ours), 0
        )
        assert not shared, f"{path.name} holds {shared!r}"


def test_passages_repeat_nothing_of_each_other() -> None:
    """Text made from templates would be counted as more evidence than it is."""
    for domain, rows in ROWS.items():
        seen: Counter[str] = Counter()
        for row in rows:
            seen.update({window for text in said(row) for window in windows(text)})
        assert [window for window, count in seen.items() if count > 1] == [], domain


def test_many_languages_and_scripts() -> None:
    names = [
        name.split(":")[0]
        for path in (ROOT / "scripts/make_verification/texts/multilingual").glob("*.txt")
        for name in re.findall(r"^%%% (.*)$", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert len(names) == len(ROWS["multilingual"])
    assert len(set(names)) >= 20
    letters = Counter(
        unicodedata.name(letter, "").split()[0]
        for row in ROWS["multilingual"]
        for letter in row["text"]
        if letter.isalpha()
    )
    scripts = (
        "CJK",
        "HIRAGANA",
        "HANGUL",
        "CYRILLIC",
        "ARABIC",
        "DEVANAGARI",
        "GREEK",
        "HEBREW",
        "THAI",
        "TAMIL",
        "BENGALI",
    )
    for script in scripts:
        assert letters[script] > 200, script


def test_agents_think_call_and_read_results(tiny_m2: Path) -> None:
    tokenizer = load_tokenizer(tiny_m2)
    for number, row in enumerate(ROWS["tools"], 1):
        rendered = tokenizer.render(Row(row, f"tools.jsonl:{number}"))
        for mark in ("<think>", "<minimax:tool_call>", "<response>"):
            assert mark in rendered
        tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row["tools"]}
        for schema in tools.values():
            Draft202012Validator.check_schema(schema)
        for message in row["messages"]:
            for call in message.get("tool_calls", []):
                Draft202012Validator(tools[call["function"]["name"]]).validate(call["function"]["arguments"])
        assert tokenizer.encode(Row(row, f"tools.jsonl:{number}"))


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_sources_make_the_file_byte_for_byte(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from make_verification.rows import as_lines
    from make_verification.texts import text_rows

    assert as_lines(text_rows(domain)).encode() == (FOLDER / f"{domain}.jsonl").read_bytes()

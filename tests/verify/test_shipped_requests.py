"""The shipped requests: what they promise about themselves, and that their sources make them."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from quantkit.calibration.corpora.check import row_problem
from quantkit.calibration.corpora.render import load_tokenizer
from quantkit.calibration.corpora.rows import Row

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / "quantkit" / "verify" / "shipped" / "requests.jsonl"
FIELDS = {"id", "category", "messages", "tools", "label", "expected", "mock"}
CATEGORIES = {
    "single",
    "several_tools",
    "parallel",
    "nested",
    "values",
    "irrelevance",
    "no_tools_needed",
    "multi_turn",
    "interleaved",
    "languages",
}

REQUESTS: list[dict[str, Any]] = [json.loads(line) for line in PATH.read_text("utf-8").splitlines()]


def in_category(*names: str) -> list[dict[str, Any]]:
    return [request for request in REQUESTS if request["category"] in names]


def ids(request: Any) -> str:
    return str(request["id"])


def schemas(request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {tool["function"]["name"]: tool["function"]["parameters"] for tool in request["tools"]}


def earlier_calls(request: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for message in request["messages"]:
        for call in message.get("tool_calls", []):
            yield call["function"]["name"], json.loads(call["function"]["arguments"])


def test_there_are_enough_of_every_category() -> None:
    counts = Counter(request["category"] for request in REQUESTS)
    assert set(counts) == CATEGORIES
    assert min(counts.values()) >= 12
    assert len(REQUESTS) >= 150
    assert PATH.stat().st_size < 600_000


def test_the_readme_counts_them() -> None:
    table = dict(re.findall(r"^\| `(\w+)` +\| (\d+) ", PATH.with_name("README.md").read_text("utf-8"), re.MULTILINE))
    assert {name: int(count) for name, count in table.items()} == Counter(each["category"] for each in REQUESTS)
    assert f"{len(REQUESTS)} requests" in PATH.with_name("README.md").read_text("utf-8")


def test_ids_and_wordings_are_unique() -> None:
    assert len({request["id"] for request in REQUESTS}) == len(REQUESTS)
    assert len({json.dumps(request["messages"]) for request in REQUESTS}) == len(REQUESTS)
    assert not any("#" in request["id"] for request in REQUESTS)  # marks further runs of one request in captures


@pytest.mark.parametrize("request_", REQUESTS, ids=ids)
def test_a_request_is_what_clients_send(request_: dict[str, Any]) -> None:
    assert set(request_) - {"language"} == FIELDS
    waiting: list[str] = []
    for message in request_["messages"]:
        if message["role"] == "tool":
            assert message["tool_call_id"] == waiting.pop(0)
        else:
            assert not waiting, "a call without its result"
        waiting += [call["id"] for call in message.get("tool_calls", [])]
        assert not message.get("tool_calls") or message["reasoning_content"]
    assert not waiting
    assert request_["messages"][-1]["role"] in ("user", "tool")
    for tool in request_["tools"]:
        assert tool["type"] == "function"
        assert tool["function"]["description"]
        assert set(tool["function"]["parameters"]["required"]) <= set(tool["function"]["parameters"]["properties"])


@pytest.mark.parametrize("request_", REQUESTS, ids=ids)
def test_schemas_are_valid_and_known_calls_fit_them(request_: dict[str, Any]) -> None:
    tools = schemas(request_)
    assert len(tools) == len(request_["tools"])
    for schema in tools.values():
        Draft202012Validator.check_schema(schema)
    expected = [(call["name"], call["arguments"]) for call in request_["expected"] or []]
    for name, arguments in [*expected, *earlier_calls(request_)]:
        Draft202012Validator(tools[name]).validate(arguments)
        assert set(arguments) <= set(tools[name]["properties"])


def test_labels_agree_with_categories_and_expected_calls() -> None:
    for request in REQUESTS:
        if request["expected"] is not None or request["mock"] is not None:
            assert request["label"] is True, request["id"]
            assert request["expected"] != []
    assert all(request["label"] is False for request in in_category("irrelevance", "no_tools_needed"))
    assert all(
        request["label"] is True
        for request in in_category("single", "several_tools", "parallel", "nested", "values", "interleaved")
    )
    assert sum(request["expected"] is not None for request in REQUESTS) >= 100


def test_categories_are_what_they_are_called() -> None:
    assert all(len(request["tools"]) >= 5 for request in in_category("several_tools"))
    assert all(len(request["expected"]) >= 2 for request in in_category("parallel"))
    assert all(list(earlier_calls(request)) for request in in_category("multi_turn"))
    assert all((request["mock"] is not None) == (request["category"] == "interleaved") for request in REQUESTS)
    languages = {request["language"] for request in in_category("languages")}
    assert len(languages) >= 15
    assert {"de", "es", "ja", "zh", "ar", "hi", "ru", "pt", "fr", "ko", "tr"} <= languages


def test_hard_values_are_there() -> None:
    texts = [
        value
        for request in in_category("values")
        for call in request["expected"] or []
        for value in call["arguments"].values()
        if isinstance(value, str)
    ]
    for mark in ("\n", '"', "</invoke>", "&", "\\", "\t", "🍮"):
        assert any(mark in text for text in texts), mark
    assert "" in texts
    assert any(text.isdigit() for text in texts)


@pytest.mark.parametrize("request_", in_category("interleaved"), ids=ids)
def test_a_perfect_walk_reaches_the_goal(request_: dict[str, Any]) -> None:
    """Every call can be made from what was said before it, is answered by its own rule, and the goal comes out."""
    tools, mock = schemas(request_), request_["mock"]
    assert 2 <= len(mock["rules"]) < mock["turns"]
    known = request_["messages"][-1]["content"]
    for place, rule in enumerate(mock["rules"]):
        properties = tools[rule["name"]]["properties"]
        for name, value in rule["arguments"].items():
            Draft202012Validator(properties[name]).validate(value)
        assert mock["goal"] not in known
        first = next(
            number
            for number, other in enumerate(mock["rules"])
            if other["name"] == rule["name"] and other["arguments"].items() <= rule["arguments"].items()
        )
        assert first == place, "an earlier rule would answer"
        for text in leaves(rule["arguments"]):
            assert text in known, f"{text!r} cannot be known yet"
        known += "\n" + rule["result"]
    assert mock["goal"] in mock["rules"][-1]["result"]


# Arguments of rules that follow from the task without being spelled out in it.
INFERRED = {"10:30", "EUR", "USD", "5000"}


def leaves(value: Any) -> Iterator[str]:
    """Texts and numbers in nested arguments, as they would be found in a text."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    elif str(value) not in INFERRED and value != 1:
        yield str(value)


def test_servers_templates_take_them(tiny_m2: Path) -> None:
    """With arguments as objects, as servers hand them to the template, all conversations render with all tools."""
    tokenizer = load_tokenizer(tiny_m2)
    for request in REQUESTS:
        row = json.loads(json.dumps({"messages": request["messages"], "tools": request["tools"]}))
        for message in row["messages"]:
            for call in message.get("tool_calls", []):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        assert row_problem(row) is None, request["id"]
        rendered = tokenizer.render(Row(row, request["id"]))
        assert request["messages"][-1]["content"] in rendered
        assert all(f'"name": "{name}"' in rendered for name in schemas(request))


def test_the_sources_make_the_file_byte_for_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from make_verification.requests import request_rows
    from make_verification.rows import as_lines

    assert as_lines(request_rows()).encode() == PATH.read_bytes()

"""BFCL's data files become requests; the package that holds them is not imported."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from quantkit.errors import BadInput
from quantkit.verify.tool_calls.bfcl import bfcl_requests


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "dict", "properties": properties, "required": list(properties)}


def row(number: int, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    function = {"name": name, "description": "Does it.", "parameters": parameters}
    return {"id": f"multiple_{number}", "question": [[{"role": "user", "content": "Do."}]], "function": [function]}


MATRIX = {"type": "array", "items": {"type": "tuple", "items": {"type": "float"}}}
ROWS = [
    row(0, "math.hypot", schema(x={"type": "integer"}, type={"type": "float"})),
    row(1, "paint", schema(where={"type": "dict", "properties": {"at": MATRIX}}, with_what={"type": "any"})),
    row(2, "ambiguous", schema(unit={"type": "string"})),
    row(3, "misfit", schema(x={"type": "integer"})),
]
ANSWERS = [
    [{"math.hypot": {"x": [4], "type": [5.0]}}],
    [{"paint": {"where": [{"at": [[[1.0, 2.0]]]}], "with_what": ["red"]}}],
    [{"ambiguous": {"unit": ["m", ""]}}],
    [{"misfit": {"x": ["four"]}}],
]


@pytest.fixture
def bfcl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the wheel's layout that cannot be imported."""
    package = tmp_path / "bfcl_eval"
    data = package / "data"
    (data / "possible_answer").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError")
    lines(data / "BFCL_v4_multiple.json", ROWS)
    found = [{"id": f"multiple_{number}", "ground_truth": answer} for number, answer in enumerate(ANSWERS)]
    lines(data / "possible_answer" / "BFCL_v4_multiple.json", found)
    lines(data / "BFCL_v4_irrelevance.json", [row(9, "f", schema(x={"type": "integer"}))])
    lines(data / "BFCL_v4_multi_turn_base.json", [{"id": "m", "question": [], "involved_classes": []}])
    (data / "BFCL_v4_format_sensitivity.json").write_text("{\n}")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return package


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")


def test_types_and_names_are_converted(bfcl: Path) -> None:
    first, second, *_ = bfcl_requests(["multiple"])
    assert "bfcl_eval" not in sys.modules
    function = first.tools[0]["function"]
    assert function["name"] == "math_hypot"
    assert function["parameters"]["properties"] == {"x": {"type": "integer"}, "type": {"type": "number"}}
    assert function["parameters"]["type"] == "object"
    paint = second.tools[0]["function"]["parameters"]["properties"]
    assert paint["where"]["properties"]["at"]["items"] == {"type": "array", "items": {"type": "number"}}
    assert paint["with_what"] == {}
    for request in (first, second):
        Draft202012Validator.check_schema(request.tools[0]["function"]["parameters"])


def test_answers_are_expected_where_only_one_is_right_and_fits(bfcl: Path) -> None:
    requests = bfcl_requests(["multiple"])
    assert [request.label for request in requests] == [True] * 4
    expected = [request.expected and json.loads(request.expected[0].arguments) for request in requests]
    assert expected == [{"x": 4, "type": 5.0}, {"where": {"at": [[1.0, 2.0]]}, "with_what": "red"}, None, None]
    assert requests[0].expected is not None
    assert requests[0].expected[0].name == "math_hypot"


def test_irrelevance_wants_no_call(bfcl: Path) -> None:
    (request,) = bfcl_requests(["irrelevance"])
    assert (request.label, request.expected, request.category) == (False, None, "bfcl:irrelevance")


@pytest.mark.parametrize("category", ["multi_turn_base", "simplest"])
def test_other_categories_are_refused_with_those_there_are(bfcl: Path, category: str) -> None:
    with pytest.raises(BadInput, match=f"bfcl:{category}.*irrelevance, multiple$"):
        bfcl_requests([category])


def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.verify.tool_calls.bfcl.find_spec", lambda _: None)
    with pytest.raises(BadInput, match="pip install --no-deps bfcl-eval"):
        bfcl_requests(["multiple"])

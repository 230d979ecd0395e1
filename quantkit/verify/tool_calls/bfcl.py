"""Berkeley Function-Calling Leaderboard v4: requests out of the data files of the installed bfcl-eval wheel.

Only single-turn categories, whose lines carry their tools. The package itself is not imported: it needs dozens of
others. Its schemas name types of their own and functions with dots, which servers refuse: both are converted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema

from quantkit.errors import BadInput
from quantkit.verify.records import Call, Request, Tool

# Types of BFCL's schemas that JSON Schema does not know; None: a value of any type.
_TYPES = {
    "dict": "object",
    "HashMap": "object",
    "Hashtable": "object",
    "float": "number",
    "double": "number",
    "tuple": "array",
    "list": "array",
    "Array": "array",
    "ArrayList": "array",
    "String": "string",
    "char": "string",
    "Boolean": "boolean",
    "bool": "boolean",
    "long": "integer",
    "short": "integer",
    "byte": "integer",
    "any": None,
    "": None,
}
# Answers of these are written in the syntax of another language.
_NO_ANSWERS = ("simple_java", "simple_javascript")


def bfcl_requests(categories: Sequence[str]) -> list[Request]:
    """All requests of the categories, such as simple_python or irrelevance, in the order of the files.

    Raises BadInput when the wheel is not installed, or for a category that it lacks or that is not single-turn.
    """
    data = _data_folder()
    return [request for category in categories for request in _category(data, category)]


def _data_folder() -> Path:
    spec = find_spec("bfcl_eval")  # finds a top-level package without importing it
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise BadInput(
            "bfcl: the package bfcl-eval, which holds the requests, is not installed; `pip install --no-deps bfcl-eval`"
        )
    return Path(folders[0]) / "data"


def _category(data: Path, category: str) -> list[Request]:
    path = data / f"BFCL_v4_{category}.json"
    if not path.is_file():
        raise BadInput(f"bfcl:{category}: no such category; there are {', '.join(_single_turn(data))}")
    rows = _rows(path)
    if not rows or "function" not in rows[0]:
        raise BadInput(f"bfcl:{category}: runs tools of its own; give one of {', '.join(_single_turn(data))}")
    answers_path = data / "possible_answer" / path.name
    answers = {}
    if answers_path.is_file() and category not in _NO_ANSWERS:
        answers = {row["id"]: row["ground_truth"] for row in _rows(answers_path)}
    return [_request(row, category, answers.get(row["id"])) for row in rows]


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not as bfcl-eval 2026 has it ({error}); install that version") from None


def _single_turn(data: Path) -> list[str]:
    names = []
    for path in sorted(data.glob("BFCL_v4_*.json")):
        with path.open(encoding="utf-8") as file:
            if '"function": ' in file.readline():
                names.append(path.stem.removeprefix("BFCL_v4_"))
    return names


def _request(row: dict[str, Any], category: str, answers: Any) -> Request:
    tools = [_tool(function) for function in row["function"]]
    return Request(
        id=row["id"],
        messages=row["question"][0],
        tools=tools,
        category=f"bfcl:{category}",
        label="irrelevance" not in category,
        expected=_expected(answers, tools) if answers else None,
    )


def _tool(function: dict[str, Any]) -> Tool:
    name, schema = tool_name(function["name"]), _schema(function["parameters"])
    return {"type": "function", "function": {**function, "name": name, "parameters": schema}}


def tool_name(name: str) -> str:
    """A name that OpenAI-compatible servers take."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64]


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A copy in JSON Schema's types. Only schemas are converted: a property may itself be called `type`."""
    converted = dict(schema)
    kind = schema.get("type")
    if kind in _TYPES:
        if _TYPES[kind] is None:
            del converted["type"]
        else:
            converted["type"] = _TYPES[kind]
    if isinstance(schema.get("properties"), dict):
        converted["properties"] = {name: _schema(each) for name, each in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        converted["items"] = _schema(schema["items"])
    if not isinstance(schema.get("required", []), list):
        del converted["required"]
    return converted


class _Ambiguous(Exception):
    """More than one answer is right."""


def _expected(answers: list[dict[str, dict[str, list[Any]]]], tools: Sequence[Tool]) -> list[Call] | None:
    """The right calls, where only one value is allowed for every parameter and it fits the schema."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    calls = []
    for answer in answers:
        for name, allowed in answer.items():
            try:
                arguments = {key: _only(values) for key, values in allowed.items()}
            except _Ambiguous:
                return None
            schema = schemas.get(tool_name(name))
            if schema is None or not jsonschema.Draft202012Validator(schema).is_valid(arguments):
                return None
            calls.append(Call(tool_name(name), json.dumps(arguments, ensure_ascii=False)))
    return calls


def _only(values: Any) -> Any:
    """The one allowed value; "" among the values stands for a parameter left out."""
    if not isinstance(values, list) or len(values) != 1 or values[0] == "":
        raise _Ambiguous
    return _plain(values[0])


def _plain(value: Any) -> Any:
    """A value whose inner objects list what is allowed for each of their keys."""
    if isinstance(value, dict):
        return {key: _only(allowed) for key, allowed in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value

"""Arguments of calls: read, checked against the tool's schema, and compared exactly or leniently."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator

from quantkit.verify.records import Call, Tool

# What BFCL drops from strings before it compares them.
_IGNORED = re.compile(r"[ ,./\-_*^]")


def read_arguments(call: Call) -> dict[str, Any] | None:
    """The arguments as an object, None where the text is none."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return None
    return arguments if isinstance(arguments, dict) else None


def parameters_of(tools: Sequence[Tool], name: str) -> dict[str, Any] | None:
    """The schema of a tool's parameters, None where no tool has that name."""
    for tool in tools:
        if tool["function"]["name"] == name:
            return tool["function"].get("parameters") or {}
    return None


def is_valid(call: Call, tools: Sequence[Tool]) -> bool:
    """Whether the tool is known, the arguments are a JSON object and fit its schema; False for a broken schema."""
    schema, arguments = parameters_of(tools, call.name), read_arguments(call)
    if schema is None or arguments is None:
        return False
    validator = _validator(json.dumps(schema))
    try:
        return validator is not None and validator.is_valid(arguments)
    except Exception:  # a reference in the schema that leads nowhere, a pattern that is no regular expression
        return False


@lru_cache(maxsize=4096)
def _validator(schema: str) -> Draft202012Validator | None:
    loaded = json.loads(schema)
    try:
        Draft202012Validator.check_schema(loaded)
    except Exception:  # SchemaError, or what a wrongly typed keyword raises
        return None
    return Draft202012Validator(loaded)


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values: keys sorted, 2.0 written as 2."""
    return json.dumps(_numbers(value), sort_keys=True, ensure_ascii=False)


def canonical_call(call: Call) -> tuple[str, str]:
    """Name and canonical arguments; the arguments' text itself where it is no JSON object."""
    arguments = read_arguments(call)
    return call.name, call.arguments if arguments is None else canonical(arguments)


def same_calls(left: Sequence[Call], right: Sequence[Call]) -> bool:
    """Whether both hold the same calls, in any order."""
    return Counter(map(canonical_call, left)) == Counter(map(canonical_call, right))


def same_names(left: Sequence[Call], right: Sequence[Call]) -> bool:
    """Whether both call the same tools equally often, in any order."""
    return Counter(call.name for call in left) == Counter(call.name for call in right)


def normalized(value: Any) -> str:
    """Canonical JSON with strings as BFCL compares them: lower case, without blanks and ,./-_*^, ' for "."""
    return canonical(_strings(value))


def parameter_matches(reference: Sequence[Call], other: Sequence[Call]) -> tuple[int, int]:
    """Parameters that agree after normalization, and all parameters that either side gave.

    Each call of the reference is held against the call of the same tool that agrees in most; parameters of calls
    without a partner, and those that only one side gave, count as not agreeing.
    """
    left = [(call.name, _normalized_arguments(call)) for call in reference]
    rest = [(call.name, _normalized_arguments(call)) for call in other]
    agreeing = total = 0
    for name, arguments in left:
        partners = [each for each in rest if each[0] == name]
        if not partners:
            total += len(arguments)
            continue
        partner = max(partners, key=lambda each: _agreeing(arguments, each[1]))
        rest.remove(partner)
        agreeing += _agreeing(arguments, partner[1])
        total += len(arguments.keys() | partner[1].keys())
    return agreeing, total + sum(len(arguments) for _, arguments in rest)


def holds(arguments: Any, wanted: Any) -> bool:
    """Whether `arguments` has everything of `wanted`, objects by key, other values normalized."""
    if isinstance(wanted, dict):
        return isinstance(arguments, dict) and all(
            key in arguments and holds(arguments[key], value) for key, value in wanted.items()
        )
    return normalized(arguments) == normalized(wanted)


def _normalized_arguments(call: Call) -> dict[str, str]:
    arguments = read_arguments(call)
    if arguments is None:  # one parameter that agrees with nothing but the same broken text
        return {"": call.arguments}
    return {key: normalized(value) for key, value in arguments.items()}


def _agreeing(left: dict[str, str], right: dict[str, str]) -> int:
    return sum(key in right and right[key] == value for key, value in left.items())


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _strings(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strings(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_strings(each) for each in value]
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value

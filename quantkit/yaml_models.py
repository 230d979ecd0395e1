"""YAML files that people write, checked against pydantic models; what is wrong is one line with file and field."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from quantkit.errors import BadInput

Checked = TypeVar("Checked", bound=BaseModel)

_PLAIN_WORDS = {
    "missing": "this field is required",
    "extra_forbidden": "unknown field",
    "tuple_type": "expected a list",
    "model_type": "expected a mapping",
}


def read_mapping(path: Path, kind: str, shape: str) -> dict[Any, Any]:
    """The mapping in the YAML file `path`, a `kind` ("recipe") of which `shape` says what it has to look like."""
    try:
        data = yaml.safe_load(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot read the {kind} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: cannot read the {kind}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise BadInput(f"{path}: {shape}")
    return data


def validated(model: type[Checked], data: dict[Any, Any], place: str) -> Checked:
    """`data` as a `model`; raises BadInput with the first problem at `place`."""
    # Strict models take no list for a tuple.
    data = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise BadInput(f"{place}: {_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints as `field: what is wrong`, on one line."""
    problem = error.errors(include_url=False)[0]
    message = _PLAIN_WORDS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
    field = "".join(parts).lstrip(".")
    return " ".join(f"{field}: {message}".removeprefix(": ").split())

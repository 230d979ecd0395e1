"""Tool-use dialogues with real tool schemas (bfcl-eval): single requests with their calls, and whole service sessions.

Only files of bfcl-eval that its leaderboard does not score are used for requests, and only the function documents
for sessions, so that the benchmark itself stays unseen.
"""

# ruff: noqa: E501 (sentences and tables, one per line)

from __future__ import annotations

import ast
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from make_calibration.packages import TOOL_SCHEMAS, read_files
from make_calibration.workspace import Call, Dialogue, Message

_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string", "list": "array"}
_FILES = ("exec_simple", "exec_multiple", "exec_parallel", "exec_parallel_multiple")

# Functions whose results anybody can compute.
_COMPUTED: dict[str, Callable[..., Any]] = {
    "calc_binomial_probability": lambda n, k, p: math.comb(n, k) * p**k * (1 - p) ** (n - k),
    "calculate_density": lambda mass, volume: mass / volume,
    "calculate_displacement": lambda initial_velocity, acceleration, time: initial_velocity * time + acceleration * time**2 / 2,
    "calculate_electrostatic_potential_energy": lambda charge, voltage: charge * voltage,
    "calculate_final_velocity": lambda initial_velocity, acceleration, time: initial_velocity + acceleration * time,
    "calculate_future_value": lambda present_value, interest_rate, periods: present_value * (1 + interest_rate) ** periods,
    "calculate_mean": lambda numbers: sum(numbers) / len(numbers),
    "calculate_permutations": math.perm,
    "calculate_triangle_area": lambda base, height: base * height / 2,
    "calculate_basal_metabolic_rate": lambda weight, height, age, gender: 10 * weight + 6.25 * height - 5 * age + (5 if gender == "male" else -161),
    "get_fibonacci_sequence": lambda n: [round(((1 + 5**0.5) / 2) ** i / 5**0.5) for i in range(n)],
    "get_prime_factors": lambda number: [p for p in range(2, number + 1) if number % p == 0 and all(p % q for q in range(2, p))],
    "math_factorial": math.factorial,
    "math_gcd": math.gcd,
    "math_lcm": math.lcm,
    "sort_array": lambda array, reverse=False: sorted(array, reverse=reverse),
    "calculate_slope": lambda x1, y1, x2, y2: (y2 - y1) / (x2 - x1),
    "convert_binary_to_decimal": lambda binary: int(binary, 2),
    "geometry_area_circle": lambda radius: math.pi * radius**2,
    "quadratic_roots": lambda a, b, c: [(-b + s * (b * b - 4 * a * c) ** 0.5) / (2 * a) for s in (1, -1)],
}  # fmt: skip
_PLANS = (
    "The user wants {what}. {name} does that; the request has everything it needs: {values}.",
    "{name} fits. From the text: {values}.",
    "I should not estimate this, there is a tool for it. Call {name} with {values}.",
)


def tool(raw: dict[str, Any]) -> Message:
    """A BFCL function document in OpenAI's shape."""
    fields = {key: raw[key] for key in ("name", "description", "parameters")}
    fields["name"] = fields["name"].replace(".", "_")
    return {"type": "function", "function": _converted(fields)}


def _converted(value: Any) -> Any:
    if isinstance(value, dict):
        kind = value.get("type")
        changed = {"type": _TYPES[kind]} if isinstance(kind, str) and kind in _TYPES else {}
        return {key: _converted(item) for key, item in (value | changed).items()}
    return [_converted(item) for item in value] if isinstance(value, list) else value


def load_schemas(folder: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, Message]]]:
    """Requests of the unscored files, each with `ground_truth`; and the tools of every service by name."""
    lines = {path.rpartition("/")[2]: text.splitlines() for path, text in _texts(folder, "unused_datasets/question")}
    answers = {path.rpartition("/")[2]: text.splitlines() for path, text in _texts(folder, "possible_answer")}
    requests = []
    for name in _FILES:
        file = f"BFCL_v4_{name}.json"
        truth = {row["id"]: row["ground_truth"] for row in map(json.loads, answers[file])}
        for row in map(json.loads, lines[file]):
            requests.append(row | {"ground_truth": truth[row["id"]]})
    services = {}
    for path, text in _texts(folder, "multi_turn_func_doc"):
        documents = [tool(json.loads(line)) for line in text.splitlines()]
        stem = path.rpartition("/")[2].removesuffix(".json")
        services[stem] = {document["function"]["name"]: document for document in documents}
    return requests, services


def _texts(folder: Path, part: str) -> Iterator[tuple[str, str]]:
    return ((path, text) for path, text in read_files(TOOL_SCHEMAS, folder) if part in path)


def request_dialogues(requests: list[dict[str, Any]], rng: random.Random) -> Iterator[Dialogue]:
    """One request with its calls; with results and an answer where the results can be computed."""
    every = [tool(function) for row in requests for function in row["function"]]
    for row in requests:
        calls = [_parsed(text) for text in row["ground_truth"]]
        if None in calls:
            continue
        offered = [tool(function) for function in row["function"]]
        names = {document["function"]["name"] for document in offered}
        spare = [document for document in every if document["function"]["name"] not in names]
        offered += rng.sample(spare, rng.randint(0, 3))
        distinct = {document["function"]["name"]: document for document in offered}
        offered = list(distinct.values())
        rng.shuffle(offered)
        dialogue = Dialogue(offered)
        dialogue.say("user", row["question"][0][0]["content"])
        _answer(dialogue, [call for call in calls if call], rng)
        yield dialogue


def _parsed(text: str) -> Call | None:
    """A call written as Python source: its name and keyword arguments, or None."""
    try:
        node = ast.parse(text, mode="eval").body
        if not isinstance(node, ast.Call) or node.args:
            return None
        arguments = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (SyntaxError, ValueError):
        return None
    return ast.unparse(node.func).replace(".", "_"), arguments


def _answer(dialogue: Dialogue, calls: list[Call], rng: random.Random) -> None:
    values = "; ".join(", ".join(f"{key} = {json.dumps(value)}" for key, value in args.items()) for _, args in calls)
    names = " and ".join(sorted({name for name, _ in calls}))
    thinking = rng.choice(_PLANS).format(what="a result, not an explanation", name=names, values=values)
    try:
        results = [_computed(name, args) for name, args in calls]
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        made = [{"type": "function", "function": {"name": name, "arguments": args}} for name, args in calls]
        turn = {"role": "assistant", "content": "", "reasoning_content": thinking, "tool_calls": made}
        dialogue.messages.append(turn)
        return
    dialogue.call(
        thinking, [(call, json.dumps({"result": result})) for call, result in zip(calls, results, strict=True)]
    )
    said = "; ".join(f"{name} gives {_shown(result)}" for (name, _), result in zip(calls, results, strict=True))
    dialogue.answer("The results answer all parts of the question.", f"Here is what I got: {said}.")


def _computed(name: str, arguments: dict[str, Any]) -> Any:
    function = _COMPUTED[name]
    # Functions of the module math take no names.
    return function(*arguments.values()) if getattr(function, "__module__", "") == "math" else function(**arguments)


def _shown(result: Any) -> str:
    return f"{result:.6g}" if isinstance(result, float) else str(result)


def service_dialogues(services: dict[str, dict[str, Message]], count: int, rng: random.Random) -> Iterator[Dialogue]:
    """Sessions with several turns over the services' tools, their errors and retries included."""
    from make_calibration.scenarios import SCENARIOS

    for place in range(count):
        service, scenario = SCENARIOS[place % len(SCENARIOS)]
        tools = list(services[service].values())
        rng.shuffle(tools)
        dialogue = Dialogue(tools[: rng.randint(2, 8)])
        needed = scenario(dialogue, rng)
        have = {document["function"]["name"] for document in dialogue.tools or []}
        dialogue.tools = (dialogue.tools or []) + [services[service][name] for name in needed if name not in have]
        yield dialogue


def tool_rows(folder: Path, sessions: int, seed: int) -> list[dict[str, Any]]:
    """The rows of tools.jsonl."""
    rng = random.Random(f"{seed}/tools")
    requests, services = load_schemas(folder)
    origin = {"package": str(TOOL_SCHEMAS), "licence": TOOL_SCHEMAS.licence}
    dialogues = [*request_dialogues(requests, rng), *service_dialogues(services, sessions, rng)]
    rows = [dialogue.row(**origin) for dialogue in dialogues]
    rng.shuffle(rows)
    return rows

"""Tool calls that came out differently, side by side, with what differs marked."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.verify.report.markup import Child, Markup, element
from quantkit.verify.report.text import cut

SHOWN = 40
LONGEST = 4000  # characters of a field; more makes the comparison slow and the page long
_SAME_BEFORE = 300  # characters kept of what is equal before the first difference, where a field is too long
_WORDS = re.compile(r"\w+|\s+|[^\w\s]")
_SIDES = ("reference", "quantized")
_KINDS = {
    "trigger": "One calls, the other does not",
    "name": "Other tools",
    "count": "Another number of calls",
    "arguments": "Other arguments",
    "content": "Other content",
}
_FIELDS = (("reasoning", "Reasoning"), ("content", "Content"))


def differing_calls(report: Mapping[str, Any]) -> Markup | None:
    """The requests whose answers differ, the first of them open."""
    found = [one for one in report.get("differences") or [] if isinstance(one, Mapping)]
    if not found:
        return None
    more = len(found) - SHOWN
    return element(
        "div",
        [_difference(one, is_open=number < 3) for number, one in enumerate(found[:SHOWN])],
        element("p", f"{more:,} more are in report.json.", class_="quiet") if more > 0 else None,
    )


def heading(one: Mapping[str, Any]) -> str:
    """What differs, in which request, step and category."""
    step, kind = one.get("step"), str(one.get("kind") or "")
    parts = [
        _KINDS.get(kind, kind),
        one.get("request"),
        f"step {step}" if step is not None else None,
        one.get("category"),
    ]
    return cut(" · ".join(str(part) for part in parts if part), 300)


def calls_text(calls: Sequence[Mapping[str, Any]]) -> str:
    """Calls as text, arguments indented where they are JSON."""
    return "\n".join(f"{call.get('name')} {_pretty(call.get('arguments'))}" for call in calls)


def whole_text(answer: Mapping[str, Any]) -> str:
    """An answer in one piece: reasoning, content and calls, each under its name."""
    parts = [(label, str(answer.get(key) or "")) for key, label in _FIELDS]
    parts.append(("Calls", calls_text(answer.get("calls") or [])))
    return "\n".join(f"[{label}]\n{text}" for label, text in parts if text) or "[nothing]"


def aligned(left: str, right: str, limit: int = LONGEST) -> tuple[str, str]:
    """Both texts within `limit`; where one is too long, what is equal at the beginning goes first."""
    same = next((at for at, (one, other) in enumerate(zip(left, right)) if one != other), min(len(left), len(right)))
    if max(len(left), len(right)) > limit and same > 2 * _SAME_BEFORE:
        dropped = same - _SAME_BEFORE
        note = f"[{dropped:,} equal characters before] … "
        left, right = note + left[dropped:], note + right[dropped:]
    return cut(left, limit), cut(right, limit)


def marked(left: str, right: str) -> tuple[Markup, Markup]:
    """Both texts with the words that only one of them has marked."""
    words = (_WORDS.findall(left), _WORDS.findall(right))
    out: tuple[list[Child], list[Child]] = ([], [])
    for kind, a, b, c, d in difflib.SequenceMatcher(None, *words).get_opcodes():
        for side, text in enumerate(("".join(words[0][a:b]), "".join(words[1][c:d]))):
            if text:
                out[side].append(text if kind == "equal" else element(("del", "ins")[side], text))
    return element("pre", out[0], dir="auto"), element("pre", out[1], dir="auto")


def _difference(one: Mapping[str, Any], *, is_open: bool) -> Markup:
    answers = [dict(one.get(side) or {}) for side in _SIDES]
    prompt = str(one.get("prompt") or "")
    texts = [(label, *[str(answer.get(key) or "") for answer in answers]) for key, label in _FIELDS]
    texts.append(("Calls", *[calls_text(answer.get("calls") or []) for answer in answers]))
    panels = [_panels(label, left, right) for label, left, right in texts if left or right]
    return element(
        "details",
        element("summary", element("span", heading(one))),
        element("pre", cut(prompt, LONGEST), class_="prompt", dir="auto") if prompt else None,
        panels,
        class_="difference",
        open=is_open,
    )


def _panels(label: str, left: str, right: str) -> Markup:
    if left == right:
        same = element("pre", cut(left, LONGEST), dir="auto")
        return element("div", element("h4", f"{label}, the same on both sides"), same)
    panels = marked(*aligned(left, right))
    missing = "no call" if label == "Calls" else "nothing"
    shown = [panel if text else element("p", missing, class_="none") for panel, text in zip(panels, (left, right))]
    return element(
        "div",
        [element("div", element("h4", f"{label}, {side}"), panel) for side, panel in zip(_SIDES, shown)],
        class_="pair",
    )


def _pretty(arguments: object) -> str:
    """Arguments indented; text that is no JSON as it is."""
    if not isinstance(arguments, str):
        return json.dumps(arguments, indent=2, ensure_ascii=False, default=str)
    try:
        return json.dumps(json.loads(arguments), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return arguments

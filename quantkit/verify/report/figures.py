"""Figures as readers see them: how a number is written, and what the dotted names of the report are called."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

from quantkit.verify.metrics import METRICS

ABSENT = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_SIGNIFICANT = 4
_SMALLEST_PLAIN = 1e-5

# What the dotted names below `metrics` are called; what the figures say is in METRICS and, of the others, in SAYS.
TITLES: dict[str, str] = {
    "finite": "Finite scores",
    "ppl.reference": "Perplexity, reference",
    "ppl.quantized": "Perplexity, quantized",
    "ppl.ratio": "Perplexity ratio",
    "kld.mean": "KL divergence, mean",
    "kld.median": "KL divergence, median",
    "kld.p99": "KL divergence, 99 %",
    "kld.p999": "KL divergence, 99.9 %",
    "kld.max": "KL divergence, maximum",
    "same_top1": "Same top token",
    "rms_delta_p": "RMS Δp",
    "captured_mass": "Captured mass",
    "scored_tokens": "Scored tokens",
    "top": "Tokens compared per position",
    "tool_calls.query_success": "Requests answered",
    "tool_calls.trigger_f1": "Trigger F1",
    "tool_calls.match_rate": "Match rate",
    "tool_calls.schema_accuracy": "Schema accuracy",
    "tool_calls.tool_name_match": "Same tools",
    "tool_calls.arg_exact": "Arguments equal",
    "tool_calls.arg_match": "Arguments match",
    "tool_calls.call_count_cos": "Calls per turn",
    "tool_calls.expected_exact": "Expected calls",
    "tool_calls.parser_fail": "Calls the parser lost",
    "tool_calls.think_integrity": "Think block intact",
    "tool_calls.reasoning_only": "Reasoning only",
    "tool_calls.stream_parity": "Streamed equals whole",
    "tool_calls.prompt_tokens_equal": "Equal prompt tokens",
    "tool_calls.interleaved_success": "Interleaved turns succeed",
    "tool_calls.interleaved_control": "Interleaved, reasoning stripped",
    "tool_calls.interleaved_turns": "Interleaved turns needed",
    "tool_calls.interleaved_thinking": "Interleaved turns think",
    "tool_calls.reasoning_echoed": "Reasoning sent back arrives",
    "tool_calls.degeneration": "Degeneration",
    "tool_calls.abstention": "Abstention",
    "tool_calls.language_following": "Language followed",
    "layers.expert_error_max": "Expert error, maximum",
    "layers.expert_error_median": "Expert error, median",
    "layers.expert_gain_min": "Expert gain, minimum",
    "layers.expert_gain_max": "Expert gain, maximum",
    "layers.routing_min": "Same routing, worst layer",
    "layers.attention_error_max": "Attention error, maximum",
}
SAYS = {
    "captured_mass": "the reference's probability among the tokens compared",
    "top": "the rest of the vocabulary counts as one",
}


def figure(value: object) -> str:
    """A value as text: four significant digits at most, thousands grouped, a dash for None; never an empty string."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}".replace("-", _MINUS)
    if isinstance(value, numbers.Real):
        return _real(float(value)).replace("-", _MINUS)
    return str(value) or ABSENT


def interval(low: object, high: object) -> str:
    """`low … high`, or a dash where neither is known."""
    return ABSENT if low is None and high is None else f"{figure(low)} … {figure(high)}"


def size(count: object) -> str:
    """A number of bytes, whole and in decimal units."""
    if not isinstance(count, numbers.Integral):
        return figure(count)
    power = min(int(math.log10(max(int(count), 1))) // 3, 4)
    if power == 0:
        return f"{figure(count)} B"
    return f"{int(count) / 1000**power:.4g} {['B', 'kB', 'MB', 'GB', 'TB'][power]} ({figure(count)} B)"


def title(name: str) -> str:
    """What a dotted name is called; one that nobody named is its own last part."""
    return TITLES.get(name) or name.rsplit(".", 1)[-1].replace("_", " ").capitalize()


def explanation(name: str) -> str:
    """What a figure says beyond its title, an empty string where nobody wrote it down."""
    return METRICS[name].says if name in METRICS else SAYS.get(name, "")


def flatten(values: Mapping[str, Any], *, without: tuple[str, ...] = (), prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted name, in order; the keys `without` are left out at the top."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        if key in without:
            continue
        if isinstance(value, Mapping):
            leaves |= flatten(value, prefix=f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def columns(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Dotted names that any of the rows has, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows.values() for name in flatten(row)))


def part(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The mapping at a dotted name of a report, empty where there is none."""
    found: Any = report
    for key in name.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def _real(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if abs(value) < _SMALLEST_PLAIN:
        return f"{value:.{_SIGNIFICANT}g}".replace("e-0", "e-")
    decimals = min(max(_SIGNIFICANT - 1 - math.floor(math.log10(abs(value))), 0), 7)
    text = f"{value:,.{decimals}f}"
    # Zeros that were rounded to are figures; those of a value that is shorter, such as 0.02, are not.
    return text.rstrip("0").rstrip(".") if decimals and round(value, decimals) == value else text

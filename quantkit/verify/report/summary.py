"""What is to be seen first: the verdict with its reasons, the figures that matter most, and the gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from quantkit.verify.report.figures import explanation, figure, flatten, interval, part, title
from quantkit.verify.report.markup import Child, Markup, element
from quantkit.verify.report.tables import filled, metric, table
from quantkit.verify.report.text import cut

LONGEST_LINE = 2000
# Verdict → (class, sign, what it means). The sign and the word say it too, not the colour alone.
VERDICTS: dict[str, tuple[str, str, str]] = {
    "PASS": ("pass", "✓", "Every check of the gate holds."),
    "FAIL": ("fail", "✕", "At least one check of the gate does not hold."),
    "INCONCLUSIVE": ("open", "?", "No check failed, but some cannot be decided from what was measured."),
    "SKIPPED": ("skip", "\N{EN DASH}", "Not measured."),
}
_NO_VERDICT = ("open", "?", "The report holds no verdict that is known here.")
ORDER = ("FAIL", "INCONCLUSIVE", "PASS", "SKIPPED")
_KEY_FIGURES = ("kld.mean", "same_top1", "ppl.ratio", "tool_calls.trigger_f1", "tool_calls.match_rate")


def name_of(report: Mapping[str, Any], side: str) -> str:
    """The name of the reference or the quantized model."""
    return cut(str(part(report, f"models.{side}").get("name") or f"unnamed {side} model"), 200)


def checks(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The gate's checks, failed ones first, then undecided ones; within a verdict in the gate's order."""
    rank = {verdict: number for number, verdict in enumerate(ORDER)}
    found = list(part(report, "gate").get("checks") or [])
    return sorted(found, key=lambda check: rank.get(str(check.get("verdict")), 1))


def counted(report: Mapping[str, Any]) -> str:
    """How many checks had which verdict, such as `12 PASS, 1 SKIPPED`; an empty string without checks."""
    numbers = Counter(str(check.get("verdict")) for check in checks(report))
    return ", ".join(f"{count} {verdict}" for verdict, count in numbers.items())


def not_finite(report: Mapping[str, Any]) -> str:
    """The names of the figures that are no finite numbers; an empty string where all are."""
    return cut(", ".join(str(name) for name in report.get("not_finite") or []), LONGEST_LINE)


def verdict_banner(report: Mapping[str, Any]) -> Markup:
    """The verdict, big, with its reasons and how many checks stand behind it."""
    word = str(report.get("verdict") or "NO VERDICT")
    kind, sign, means = VERDICTS.get(word, _NO_VERDICT)
    reasons = [element("li", cut(str(reason), LONGEST_LINE)) for reason in report.get("reasons") or []]
    count, broken = counted(report), not_finite(report)
    return element(
        "div",
        element(
            "p",
            element("span", sign, class_="sign", aria_hidden="true"),
            element("span", cut(word, 40), class_="word"),
            class_="verdict",
        ),
        element("p", means, f" Checks: {count}." if count else None, class_="means"),
        element("ul", reasons, class_="reasons") if reasons else None,
        element("p", "Not finite: ", broken, class_="why") if broken else None,
        class_=f"banner {kind}",
    )


def key_figures(report: Mapping[str, Any]) -> Markup | None:
    """The few figures that one compares between models, with interval and noise."""
    values, intervals, noise = flatten(part(report, "metrics")), part(report, "intervals"), part(report, "noise")
    tiles = []
    for name in _KEY_FIGURES:
        if values.get(name) is None:
            continue
        limits = intervals.get(name) or {}
        about = [explanation(name)]
        if limits:
            about.append(f"95 %: {interval(limits.get('low'), limits.get('high'))}")
        if noise.get(name) is not None:
            about.append(f"noise: {figure(noise[name])}")
        term = element("dt", title(name))
        number = element("dd", figure(values[name]), class_="number")
        tiles.append(element("div", term, number, [element("dd", line) for line in about if line]))
    return element("dl", tiles, class_="tiles") if tiles else None


def gate_table(report: Mapping[str, Any]) -> Markup | None:
    """Reference, quantized, margin and verdict of every check."""
    rows = [_check(check) for check in checks(report)]
    if not rows:
        return None
    head = ["Check", "Quantized", "Reference", "95 % interval", "Rule", "Margin", "Noise"]
    return table("The gate: every check with its rule and verdict", *filled(head, rows), kind="gate")


def verdict_mark(verdict: str) -> Markup:
    """A verdict within a table."""
    kind, sign, _ = VERDICTS.get(verdict, _NO_VERDICT)
    return element("span", element("span", sign, aria_hidden="true"), " ", cut(verdict, 40), class_=f"mark {kind}")


def _check(check: Mapping[str, Any]) -> list[Child]:
    why = str(check.get("why") or "")
    return [
        [
            verdict_mark(str(check.get("verdict") or "?")),
            metric(str(check.get("metric") or "?")),
            element("p", cut(why, LONGEST_LINE), class_="why") if why else None,
        ],
        element("strong", figure(check.get("value"))),
        figure(check.get("reference")),
        interval(check.get("low"), check.get("high")),
        figure(check.get("rule")),
        figure(check.get("margin")),
        figure(check.get("noise")),
    ]

"""Where the two models part most: what stood before, what came, and what each of them expected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.verify.report.figures import figure
from quantkit.verify.report.markup import Markup, element
from quantkit.verify.report.plots import bar
from quantkit.verify.report.text import cut, cut_front, token_text

SHOWN = 10
CONTEXT = 600  # characters; the end is what matters
_CANDIDATES = 5


def worst_passages(report: Mapping[str, Any]) -> Markup | None:
    """The worst divergences, the text that led to them, and both sides' most probable tokens as bars."""
    found = [one for one in report.get("worst") or [] if isinstance(one, Mapping)][:SHOWN]
    if not found:
        return None
    return element("ol", [element("li", _divergence(one)) for one in found], class_="worst")


def probability(value: object) -> str:
    """A probability in percent."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return figure(value)
    return f"{100 * value:.1f} %"


def place(one: Mapping[str, Any]) -> str:
    """Domain, passage and position of a divergence."""
    named = (("domain", ""), ("passage", ""), ("position", "position "))
    return cut(" · ".join(f"{label}{figure(one[key])}" for key, label in named if one.get(key) is not None), 200)


def candidates(one: Mapping[str, Any], side: str) -> list[Mapping[str, Any]]:
    """The tokens that a side found most probable."""
    return [each for each in one.get(side) or [] if isinstance(each, Mapping)][:_CANDIDATES]


def _divergence(one: Mapping[str, Any]) -> Markup:
    actual = str(one.get("actual") or "")
    context = cut_front(str(one.get("context") or ""), CONTEXT)
    return element(
        "article",
        element("h3", element("span", f"KLD {figure(one.get('kld'))}"), element("span", place(one), class_="quiet")),
        element("pre", context, element("mark", token_text(actual), title="the token that stands here"), dir="auto"),
        element(
            "div",
            _expectations("Reference", candidates(one, "reference"), actual, "fill"),
            _expectations("Quantized", candidates(one, "quantized"), actual, "fill second"),
            class_="pair",
        ),
    )


def _expectations(side: str, found: Sequence[Mapping[str, Any]], actual: str, kind: str) -> Markup:
    rows = []
    for candidate in found:
        text, p = str(candidate.get("text") or ""), candidate.get("p")
        share = float(p) if isinstance(p, int | float) and math.isfinite(p) else 0.0
        came = element("span", " ◂ actual", class_="came") if text == actual else None
        rows.append(
            element(
                "tr",
                element("th", element("bdi", token_text(text, 40)), came, scope="row"),
                element("td", bar(share, kind)),
                element("td", probability(p), class_="p"),
            )
        )
    return element("table", element("caption", f"{side} expects"), element("tbody", rows), class_="expects")

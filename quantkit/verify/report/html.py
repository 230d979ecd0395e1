"""The report as one HTML page: no scripts, nothing loaded from elsewhere, readable on a phone and on paper."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from quantkit.verify.report import calls, measured, origin, passages, summary
from quantkit.verify.report.markup import Markup, element, join
from quantkit.verify.report.text import cut

_GATE = (
    "Each check holds a figure against its rule. It passes when the whole 95 % interval keeps the rule, fails when "
    "none of it does, and is inconclusive between."
)
_FIGURES = (
    "Intervals come from resampling passages and requests. Noise is the reference held against a second measurement of "
    "itself: what is no worse cannot be told from it."
)
_WORST = (
    "The tokens at which the two models part most. ␣ is a space, ↵ the end of a line; the marked token is what stands "
    "in the text."
)
_CALLS = (
    "The same request, two answers. Struck through: only in the reference; underlined: only in the quantized model."
)
_LAYERS = "The relative error of each expert's output on the same input, a small square each. Rings: the five worst."
_MISSING = "The verdict says nothing about these."


def render_html(report: Mapping[str, Any]) -> str:
    """The page of a report; any part may be missing. All text in it counts as untrusted and is escaped."""
    reference, quantized = summary.name_of(report, "reference"), summary.name_of(report, "quantized")
    word = cut(str(report.get("verdict") or "No verdict"), 40)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy()),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{word}: {quantized}"),
        element("style", _style()),
    )
    top = element(
        "header",
        element("p", "quantkit verify", class_="kicker"),
        element("h1", element("bdi", quantized)),
        element("p", "against ", element("bdi", reference), _date(report), class_="against"),
        summary.verdict_banner(report),
        summary.key_figures(report),
    )
    body = element("body", top, element("main", _sections(report)), _foot(report))
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def _sections(report: Mapping[str, Any]) -> Markup:
    return join(
        [
            _section("gate", "The gate", _GATE, summary.gate_table(report)),
            _section("not-measured", "Not measured", _MISSING, origin.bullets(report, "not_measured")),
            _section("distribution", "Divergence", "", measured.distribution(report)),
            _section("positions", "By position", "", measured.positions(report)),
            _section("domains", "By domain", "", measured.domains(report)),
            _section("worst", "Worst divergences", _WORST, passages.worst_passages(report)),
            _section("layers", "Layers and experts", _LAYERS, measured.layers(report)),
            _section("categories", "Tool calls", "", measured.tool_calls(report)),
            _section("differences", "Calls that differ", _CALLS, calls.differing_calls(report)),
            _section("figures", "All figures", _FIGURES, measured.all_figures(report)),
            _section("noise", "Noise", "The reference, measured a second time.", measured.noise(report)),
            _section(
                "engines", "Engines", "The same quantized weights, read by two engines.", measured.engines(report)
            ),
            _section("notes", "Notes", "", origin.bullets(report, "notes")),
            _section("models", "The models", "", origin.models(report)),
            _section("material", "Measured with", "", origin.material_table(report)),
        ]
    )


def _section(name: str, title: str, about: str, content: Markup | None) -> Markup | None:
    if content is None:
        return None
    heading = element("div", element("h2", title), element("p", about) if about else None, class_="side")
    return element("section", heading, element("div", content, class_="content"), id=name)


def _date(report: Mapping[str, Any]) -> Markup | None:
    created = report.get("created")
    return element("span", cut(f"measured {created}", 100), class_="date") if created else None


def _foot(report: Mapping[str, Any]) -> Markup:
    format_ = report.get("format")
    return element(
        "footer",
        element(
            "p", "The same figures are in report.json and report.md.", cut(f" {format_}.", 100) if format_ else None
        ),
    )


@cache
def _style() -> Markup:
    return Markup(Path(__file__).with_name("style.css").read_text(encoding="utf-8"))


@cache
def _policy() -> str:
    """Nothing may be loaded or run but this style sheet and pictures inside the page."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"

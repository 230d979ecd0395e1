"""The HTML page: whole, safe against what models write, self-contained, and readable by everybody."""

import base64
import hashlib
import io
import re
import time
from pathlib import Path
from typing import Any

import pytest
from page_text import Page, numbers_of, shown, with_every_text
from PIL import Image
from sample_report import EXPERTS, LAYERS, sample_report

from quantkit.verify.report import html
from quantkit.verify.report.html import render_html

NONE = "\N{EN DASH}"
HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title></pre><iframe src=//example.org>",
    "<!-- & &lt; ]]> <![CDATA[",
    "\u202egnp.exe\u2066\u200b\ufeff",
    "nul\0bell\a\x1b[31m\x85\x7f",
    "lone \ud800 and \udfff",
    "`| **x** <svg onload=alert(1)>",
)
SAFE_TAGS = set(
    "html head meta title style body header main section footer article div span p h1 h2 h3 h4 ul ol li dl dt dd table "
    "caption thead tbody tr th td code strong pre mark bdi del ins details summary figure figcaption picture source "
    "img svg rect line circle text desc".split()
)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_html(sample_report()))


def test_every_figure_is_on_the_page(page: Page) -> None:
    missing = [name for name, value in numbers_of(sample_report()) if shown(name)(value) not in page.text]
    assert missing == []


def test_every_text_is_on_the_page(page: Page) -> None:
    report = sample_report()
    texts = [*report["reasons"], *report["not_measured"], *report["notes"], report["created"]]
    texts += [text for model in report["models"].values() for text in model.values() if isinstance(text, str)]
    texts += [str(check[key]) for check in report["gate"]["checks"] for key in ("metric", "rule", "why")]
    texts += [difference[key] for difference in report["differences"] for key in ("request", "prompt")]
    texts += ["Other arguments · flight-rebooking-3 · step 1 · nested"]
    assert [text for text in texts if text not in page.text] == []


def test_verdict_comes_first_and_failed_checks_before_the_others(page: Page) -> None:
    order = [
        "FAIL",
        sample_report()["reasons"][0],
        "tool_calls.arg_exact",
        "tool_calls.interleaved_success",
        "kld.mean",
    ]
    gate = page.text.index("The gate")
    places = [
        page.text.index(order[0]),
        page.text.index(order[1]),
        *[page.text.index(name, gate) for name in order[2:]],
    ]
    assert places == sorted(places)
    assert places[0] < 300


@pytest.mark.parametrize(
    ("section", "name", "cells"),
    [
        ("gate", "tool_calls.arg_exact", ["0.8712", "0.9412", "0.8431 … 0.8977", "at most 0.02 below", "0.02", NONE]),
        ("gate", "tool_calls.stream_parity", [NONE, NONE, NONE, "at least 1", NONE, NONE]),
        ("figures", "kld.mean", ["0.02823", NONE, "0.02641 … 0.03017", "0.000962", "0.001713"]),
        ("figures", "ppl.quantized", ["4.913", "4.857", NONE, NONE, NONE]),
        ("categories", "tool_calls.trigger_f1", ["0.9817", "0.985", "0.9714 … 0.9911", "0.005021", "0.9862"]),
        ("noise", "kld.mean", ["0.001713"]),
    ],
)
def test_cells_stand_in_their_columns(page: Page, section: str, name: str, cells: list[str]) -> None:
    inside = page.html.partition(f'<section id="{section}">')[2].partition("</section>")[0]
    row = next(row for row in inside.split("<tr>") if f"<code>{name}</code>" in row)
    assert [re.sub("<[^>]*>", "", cell) for cell in re.findall("<td>(.*?)</td>", row)] == cells


def test_elements_are_closed_and_ids_are_unique(page: Page) -> None:
    assert page.unclosed == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {tag for tag, _ in page.tags} <= SAFE_TAGS


def test_pictures_have_words(page: Page) -> None:
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert all(image["alt"] for image in page.all("img"))
    for drawing in page.all("svg"):
        if drawing.get("role") == "img":
            assert set(str(drawing["aria-labelledby"]).split()) <= ids
    assert sum(drawing.get("role") == "img" for drawing in page.all("svg")) == 4  # histogram, position, gain, routing
    assert all("tabindex" in block for block in page.all("div") if block.get("class") == "scroll")


def test_nothing_is_loaded_or_run(page: Page) -> None:
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name.startswith("on")} | (names & {"style", "href"})
    sources = [tag[key] for tag in page.all("img") + page.all("source") for key in ("src", "srcset") if key in tag]
    assert sources
    assert all(str(source).startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page.html.replace("http-equiv", "")
    assert not re.search(r"url\(|@import", page.html)


def test_policy_allows_this_style_sheet_and_nothing_else(page: Page) -> None:
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    style = re.search("<style>(.*)</style>", page.html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert str(policy).startswith(f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    page = Page(render_html(with_every_text(sample_report(), text)))
    assert page.unclosed == []
    assert {tag for tag, _ in page.tags} <= SAFE_TAGS
    assert not {name for _, attributes in page.tags for name in attributes if name.startswith("on")}
    assert not re.search(
        "[\0-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]", page.html
    )
    assert page.html.encode()


def test_hostile_text_is_still_readable() -> None:
    page = Page(render_html({"reasons": ["a\0b \u202ec\ud800 </script>&amp;"]}))
    assert "a␀b ⟨U+202E⟩c⟨U+D800⟩ </script>&amp;" in page.text


def test_long_texts_are_cut_with_a_note() -> None:
    report = with_every_text(sample_report(), "x y " * 25_000)
    start = time.monotonic()
    page = render_html(report)
    assert time.monotonic() - start < 20
    assert len(page) < 1_500_000
    assert "more characters]" in page
    assert "[99,400 characters before]" in page


@pytest.mark.parametrize("key", sample_report())
def test_any_part_may_be_missing_or_alone(key: str) -> None:
    report = sample_report()
    alone = {key: report.pop(key)}
    for some in (alone, report):
        assert Page(render_html(some)).unclosed == []


def test_empty_parts_render() -> None:
    empty: dict[str, Any] = {key: type(value)() for key, value in sample_report().items()}
    assert Page(render_html(empty)).unclosed == []
    assert Page(render_html(dict.fromkeys(sample_report()))).unclosed == []
    assert 'class="banner pass"' not in render_html({})


def test_an_unknown_verdict_is_no_pass() -> None:
    assert 'class="banner pass"' in render_html({"verdict": "PASS"})
    assert 'class="banner pass"' not in render_html({"verdict": "pass"})


def test_figures_that_are_not_finite_are_shown() -> None:
    report = {"metrics": {"kld": {"mean": float("nan"), "max": float("inf")}}, "not_finite": ["metrics.kld.mean"]}
    text = Page(render_html(report)).text
    assert "NaN" in text
    assert "∞" in text
    assert "Not finite: metrics.kld.mean" in text


def test_heat_map_has_a_pixel_for_every_expert(page: Page) -> None:
    image = Image.open(io.BytesIO(base64.b64decode(str(page.all("img")[0]["src"]).partition(",")[2])))
    assert image.size == (EXPERTS, LAYERS)
    pixels = image.convert("RGBA")
    assert pixels.getpixel((7, 3)) == (0, 0, 0, 0)  # no token reached it
    assert pixels.getpixel((93, 17)) == (72, 20, 58, 255)  # the worst has the last colour
    assert "layer 17 expert 93 (0.3127)" in str(page.all("img")[0]["alt"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(scheme: str) -> None:
    colors = _palette(scheme)
    for ground in ("paper", "card", "wash"):
        for ink in ("ink", "quiet"):
            assert _contrast(colors[ink], colors[ground]) >= 4.5, (ink, ground)
    for ink in ("pass", "fail", "open", "skip"):
        assert _contrast(colors[ink], colors["paper"]) >= 4.5, ink
    for ground in ("removed", "added", "found"):
        assert _contrast(colors["ink"], colors[ground]) >= 4.5, ground
    for drawn in ("one", "two"):
        assert _contrast(colors[drawn], colors["paper"]) >= 3, drawn


def _palette(scheme: str) -> dict[str, str]:
    style = Path(html.__file__).with_name("style.css").read_text(encoding="utf-8")
    block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[("light", "dark").index(scheme)]
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block))


def _contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: str) -> float:
    channels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

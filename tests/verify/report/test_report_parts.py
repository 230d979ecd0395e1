"""The parts that the page is made of, against small cases worked out by hand."""

import io
import re

import pytest
from PIL import Image

from quantkit.verify.metrics import METRICS
from quantkit.verify.report.calls import aligned, calls_text, marked
from quantkit.verify.report.figures import TITLES, figure, flatten, interval, size, title
from quantkit.verify.report.heatmap import LIGHT, heat_map, png, worst_experts
from quantkit.verify.report.markup import element
from quantkit.verify.report.passages import probability
from quantkit.verify.report.plots import Plot, histogram, round_up, spans
from quantkit.verify.report.text import cut, cut_front, token_text, visible

PLOT = Plot("name", "title", "description", "unit", "axis")
NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),  # noqa: RUF001
        (True, "yes"),
        (0, "0"),
        (1_234_567, "1,234,567"),
        (0.0, "0"),
        (1.0, "1"),
        (0.02, "0.02"),
        (0.98765, "0.9877"),
        (0.99999, "1.0000"),  # rounded, so not written as an exact 1
        (4.85672, "4.857"),
        (1234.5678, "1,235"),
        (0.000123456, "0.0001235"),
        (1.23456e-6, "1.235e−6"),  # noqa: RUF001
        (-0.5, "−0.5"),  # noqa: RUF001
        (NAN, "NaN"),
        (INFINITE, "∞"),
        ("at most 0.05", "at most 0.05"),
        ("", "–"),  # noqa: RUF001
    ],
)
def test_figure(value: object, text: str) -> None:
    assert figure(value) == text


def test_other_figures() -> None:
    assert interval(0.1, 0.25) == "0.1 … 0.25"
    assert interval(None, None) == figure(None)
    assert size(124_873_410_560) == "124.9 GB (124,873,410,560 B)"
    assert size(12) == "12 B"
    assert size(None) == figure(None)
    assert [probability(p) for p in (0.91274, 1, 0, None, NAN)] == ["91.3 %", "100.0 %", "0.0 %", figure(None), "NaN"]
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3, "f": 4}, without=("f",)) == {"a.b": 1, "a.c.d": 2, "e": 3}


def test_every_metric_has_a_title() -> None:
    assert set(METRICS) <= set(TITLES)
    assert title("tool_calls.new_one") == "New one"


def test_text() -> None:
    assert visible("a\n\tb\0\x7f\u202e\u200d\ud800é") == "a\n\tb␀␡⟨U+202E⟩\u200d⟨U+D800⟩é"
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdef", 2) == "ab … [4 more characters]"
    assert cut_front("abcdef", 2) == "[4 characters before] … ef"
    assert [token_text(text) for text in ("", " a b ", "  ", "\n\t")] == ["(empty)", "␣a b␣", "␣␣", "↵⇥"]


def test_element_escapes_all_but_markup() -> None:
    inner = element("b", "<&")
    assert element("p", inner, '"', None, [1, ("x",)], class_="a\"b'", data_x=None, hidden=True) == (
        '<p class="a&quot;b&#x27;" hidden><b>&lt;&amp;</b>&quot;1x</p>'
    )


def test_differences_are_marked_word_by_word() -> None:
    left, right = marked("take 27 nails", "take 28 nails now")
    assert left == '<pre dir="auto">take <del>27</del> nails</pre>'
    assert right == '<pre dir="auto">take <ins>28</ins> nails<ins> now</ins></pre>'


def test_a_difference_far_inside_is_not_cut_away() -> None:
    left, right = aligned("x" * 100_000 + "left", "x" * 100_000 + "right")
    assert left.startswith("[99,700 equal characters before] … xxx")
    assert (left[-5:], right[-6:]) == ("xleft", "xright")


def test_arguments_are_indented_where_they_are_json() -> None:
    calls = [{"name": "f", "arguments": '{"a": "ü"}'}, {"name": "g", "arguments": '{"a": '}]
    assert calls_text(calls) == 'f {\n  "a": "ü"\n}\ng {"a": '
    assert calls_text([{"name": "h", "arguments": "[" * 100_000}]).startswith("h [[[")


def test_histogram_is_logarithmic() -> None:
    drawn = histogram([0.001, 0.01, 1.0], [50, 100], [("mean", 0.1)], PLOT)
    bars = re.findall(r'class="fill" x="([\d.]+)%" width="([\d.]+)%" y="[\d.]+" height="([\d.]+)"', drawn)
    (x1, width1, height1), (x2, width2, height2) = [[float(number) for number in bar] for bar in bars]
    assert (x1, x2) == (0, pytest.approx(33.333, abs=1e-2))  # one decade, then two
    assert (width1, width2) == (pytest.approx(33.18, abs=0.01), pytest.approx(66.52, abs=0.01))
    assert height2 == pytest.approx(2 * height1)
    assert 'class="mark" x1="66.67%"' in drawn


def test_histogram_takes_an_edge_at_zero() -> None:
    assert "<rect" in histogram([0.0, 0.01, 1.0], [50, 100], [], PLOT)


def test_spans_leave_a_gap_for_absent_values() -> None:
    drawn = spans([("0", 0, 1.0), ("1", None, None), ("2", 0, NAN), ("3", 0, 0.5)], PLOT, low=0, high=1)
    assert re.findall(r"<title>(axis .*?)</title>", drawn) == ["axis 0: 1", "axis 3: 0.5"]
    heights = [float(height) for height in re.findall(r'y="[\d.]+" height="([\d.]+)"', drawn)]
    assert heights[0] == 2 * heights[1]


def test_axes_end_at_round_numbers() -> None:
    assert [round_up(value) for value in (0.0141, 1.0, 9159, 0, NAN, -1)] == [0.016, 1, 10_000, 1, 1, 1]


def test_heat_map_colours_run_from_little_to_much() -> None:
    image = Image.open(io.BytesIO(png([[0, 127, 254, 255]], LIGHT))).convert("RGBA")
    assert [image.getpixel((x, 0)) for x in (0, 1, 2)] == [(*LIGHT[0], 255), (*LIGHT[2], 255), (*LIGHT[4], 255)]
    assert image.getpixel((3, 0))[3] == 0  # type: ignore[index]


def test_worst_experts_begin_with_what_is_not_finite() -> None:
    rows = [[0.1, None, 0.3], [NAN, 0.2]]
    assert [place[1:] for place in worst_experts(rows)] == [(1, 0), (0, 2), (1, 1), (0, 0)]
    assert "NaN" in heat_map(rows)


def test_heat_map_of_nothing_says_so() -> None:
    assert "No expert" in heat_map([[None, 0.0]])

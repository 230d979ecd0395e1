"""Plots as inline SVG that are as wide as the page: x in percent, y in pixels, so text keeps its size on a phone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.verify.report.figures import figure
from quantkit.verify.report.markup import Markup, element

HEIGHT = 200
_FEW = 12  # bars, which are slim then
_SLIMMEST = 3.0  # pixels of a bar whose ends are equal
_TOP, _BOTTOM = 18, 22  # pixels for the marks above the drawing and the tick labels below it
_GRID_LINES = 4
_MARK_LINES = 3  # marks take turns on so many lines, so that neighbours do not overlap


@dataclass(frozen=True)
class Plot:
    """One drawing: `name` is its id, `title` and `description` are read aloud, `unit` and `axis` stand beside it."""

    name: str
    title: str
    description: str
    unit: str
    axis: str


def bar(share: float, kind: str) -> Markup:
    """A horizontal bar that fills `share` of its cell; it says nothing that the text beside it does not."""
    width = f"{100 * min(max(share, 0.0), 1.0):.2f}%"
    return element(
        "svg",
        element("rect", class_="track", width="100%", height="100%"),
        element("rect", class_=kind, width=width, height="100%"),
        class_="bar",
        aria_hidden="true",
    )


def histogram(edges: Sequence[float], counts: Sequence[int], marks: Sequence[tuple[str, float]], plot: Plot) -> Markup:
    """Bars of counts [B] between edges [B + 1] on a logarithmic axis, with lines at named values."""
    positions = _log_positions(edges)
    most = round_up(max(counts, default=0))
    bars = []
    for left, right, count in zip(positions, positions[1:], counts):
        tall = _drawn(count, 0, most)
        bars.append(
            element(
                "rect",
                element("title", f"{figure(count)} tokens"),
                class_="fill",
                x=f"{left:.3f}%",
                width=f"{max(right - left - 0.15, 0.1):.3f}%",
                y=f"{_baseline() - tall:.1f}",
                height=f"{tall:.1f}",
            )
        )
    lines = _marks(edges, marks)
    top = _TOP * min(len(marks), _MARK_LINES)
    return _svg(plot, 0, most, [*bars, *lines, *_decades(edges)], above=top)


def spans(
    rows: Sequence[tuple[str, float | None, float | None]], plot: Plot, *, low: float, high: float, kind: str = "fill"
) -> Markup:
    """A bar from one value to another for each labelled row, side by side; absent values leave a gap."""
    count = max(len(rows), 1)
    slot, share = 100 / count, 0.45 if count <= _FEW else 0.8
    drawn = []
    for at, (label, start, end) in enumerate(rows):
        if not (_is_finite(start) and _is_finite(end)):
            continue
        assert start is not None
        assert end is not None
        bottom, top = _drawn(start, low, high), _drawn(end, low, high)
        said = figure(end) if start in (low, end) else f"{figure(start)} … {figure(end)}"
        drawn.append(
            element(
                "rect",
                element("title", f"{plot.axis} {label}: {said}"),
                class_=kind,
                x=f"{at * slot + slot * (1 - share) / 2:.3f}%",
                width=f"{slot * share:.3f}%",
                y=f"{_baseline() - max(top, bottom + _SLIMMEST):.1f}",
                height=f"{max(top - bottom, _SLIMMEST):.1f}",
            )
        )
    return _svg(plot, low, high, [*drawn, *_labels([label for label, _, _ in rows])])


def round_up(value: float) -> float:
    """The next of 1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8 times a power of ten: a quarter of it is a round tick too."""
    if not (math.isfinite(value) and value > 0):
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next((step * power for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8) if step * power >= value), 10 * power)


def _svg(plot: Plot, low: float, high: float, drawing: Sequence[Markup], above: int = 0) -> Markup:
    """Tick labels of the y axis at the left, the drawing in the rest of the width."""
    names = (f"{plot.name}-title", f"{plot.name}-text")
    height, y = str(HEIGHT + _TOP + above), str(_TOP + above)
    lines, ticks = _grid(low, high)
    return element(
        "figure",
        element("p", plot.unit, class_="unit"),
        element(
            "svg", element("svg", ticks, y=y, overflow="visible"), class_="ticks", height=height, aria_hidden="true"
        ),
        element(
            "svg",
            element("title", plot.title, id=names[0]),
            element("desc", plot.description, id=names[1]),
            element("svg", lines, drawing, y=y, width="100%", height=str(HEIGHT), overflow="visible"),
            role="img",
            aria_labelledby=" ".join(names),
            width="100%",
            height=height,
        ),
        element("figcaption", plot.axis),
        class_="plot",
    )


def _baseline() -> int:
    return HEIGHT - _BOTTOM


def _drawn(value: float, low: float, high: float) -> float:
    """Height in pixels of a value above the baseline."""
    return min(max((value - low) / ((high - low) or 1), 0), 1) * _baseline()


def _grid(low: float, high: float) -> tuple[list[Markup], list[Markup]]:
    """Horizontal lines, and the values that belong beside them."""
    lines, ticks = [], []
    for step in range(_GRID_LINES + 1):
        value = low + (high - low) * step / _GRID_LINES
        y = _baseline() - _drawn(value, low, high)
        lines.append(
            element("line", class_="axis" if step == 0 else "grid", x1="0", x2="100%", y1=f"{y:.1f}", y2=f"{y:.1f}")
        )
        ticks.append(element("text", _tick(value), x="100%", y=f"{y + 4:.1f}", text_anchor="end"))
    return lines, ticks


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def _labels(labels: Sequence[str]) -> list[Markup]:
    """The first, the middle and the last label below the baseline; more would overlap on a phone."""
    count = len(labels)
    chosen = sorted({0, (count - 1) // 2, count - 1}) if count else []
    return [_below(labels[at], 100 * (at + 0.5) / count) for at in chosen]


def _below(label: str, position: float) -> Markup:
    anchor = "start" if position < 8 else "end" if position > 92 else "middle"
    at = 0.0 if anchor == "start" else 100.0 if anchor == "end" else position
    return element("text", label, x=f"{at:.2f}%", y=str(HEIGHT - 5), text_anchor=anchor)


def _log_positions(edges: Sequence[float]) -> list[float]:
    """Where edges lie on the axis, in percent; an edge of zero or below lies half a decade before the first other."""
    start, end = _log_range(edges)
    return [100 * (_log(edge, start) - start) / ((end - start) or 1) for edge in edges]


def _log_range(edges: Sequence[float]) -> tuple[float, float]:
    logarithms = [math.log10(edge) for edge in edges if edge > 0 and math.isfinite(edge)]
    if not logarithms:
        return 0.0, 1.0
    return min(logarithms) - (0.5 if min(edges) <= 0 else 0), max(logarithms)


def _log(value: float, start: float) -> float:
    return math.log10(value) if value > 0 else start


def _decades(edges: Sequence[float]) -> list[Markup]:
    start, end = _log_range(edges)
    every = 2 if end - start > 6 else 1
    powers = [power for power in range(math.ceil(start - 1e-9), math.floor(end + 1e-9) + 1) if power % every == 0]
    return [_below(_power(power), 100 * (power - start) / ((end - start) or 1)) for power in powers]


def _power(power: int) -> str:
    if -3 <= power <= 3:
        return f"{10.0**power:g}"
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _marks(edges: Sequence[float], marks: Sequence[tuple[str, float]]) -> list[Markup]:
    start, end = _log_range(edges)
    drawn = []
    for number, (label, value) in enumerate(sorted(marks, key=lambda mark: mark[1])):
        at = min(max(100 * (_log(value, start) - start) / ((end - start) or 1), 0.0), 100.0)
        line = number % _MARK_LINES
        y = -_TOP * (_MARK_LINES - 1 - line) - 5
        anchor = "end" if at > 50 else "start"
        drawn.append(
            element("line", class_="mark", x1=f"{at:.2f}%", x2=f"{at:.2f}%", y1=str(y + 3), y2=str(_baseline()))
        )
        text = f" {label} {figure(value)} "
        drawn.append(element("text", text, class_="mark-label", x=f"{at:.2f}%", y=str(y), text_anchor=anchor))
    return drawn


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)

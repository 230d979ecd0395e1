"""The report as a picture: bits per weight against mean KL divergence on a logarithmic axis, one curve per method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gguf_peers.files import COMPENSATED, IMATRIX, MATRICES_ONLY, PLAIN, TUNED, WHOLE_MIX
from quantkit.verify.report.markup import Markup, element

CURVES = {PLAIN: "#8a8a8a", IMATRIX: "#1f6fb2", COMPENSATED: "#c8401a"}
POINT = {TUNED: "#2e8540"}
PANELS = ((MATRICES_ONLY, "bits_of_matrices"), (WHOLE_MIX, "bits_per_weight"))
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 400, 320, 62, 56, 52, 62
STEPS = (1, 2, 5)
INK, GRID = "#222222", "#dddddd"


@dataclass(frozen=True)
class Axes:
    """Where values lie in a panel that starts at `left`: bits from `bits[0]` to `bits[1]`, powers of ten likewise."""

    left: float
    bits: tuple[float, float]
    powers: tuple[float, float]

    def x(self, bits: float) -> float:
        return self.left + WIDTH * (bits - self.bits[0]) / (self.bits[1] - self.bits[0])

    def y(self, divergence: float) -> float:
        return TOP + HEIGHT * (self.powers[1] - math.log10(divergence)) / (self.powers[1] - self.powers[0])


def draw_picture(files: Sequence[dict[str, Any]], kind: str) -> str:
    """An SVG of the files' mean divergence on a `kind` of documents; modes without files are left out."""
    panels = [(mode, size) for mode, size in PANELS if any(row["mode"] == mode for row in files)]
    width = LEFT + len(panels) * (WIDTH + GAP)
    height = TOP + HEIGHT + BOTTOM
    drawn = [_panel(files, kind, mode, size, LEFT + at * (WIDTH + GAP)) for at, (mode, size) in enumerate(panels)]
    return element(
        "svg",
        element("rect", width="100%", height="100%", fill="white"),
        _legend({row["method"] for row in files}),
        drawn,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        font_family="sans-serif",
        font_size=12,
        fill=INK,
    )


def _panel(files: Sequence[dict[str, Any]], kind: str, mode: str, size: str, left: float) -> Markup:
    shown = [row for row in files if row["mode"] == mode and row["method"] in CURVES | POINT]
    points = {
        method: sorted(
            (row["size"][size], row["divergence"][kind]["mean"], row["type"].upper())
            for row in shown
            if row["method"] == method
        )
        for method in CURVES | POINT
    }
    bits, means = zip(*((bits, mean) for some in points.values() for bits, mean, _ in some))
    logarithms = [math.log10(mean) for mean in means]
    axes = Axes(left, (min(bits) - 0.6, max(bits) + 0.2), (min(logarithms) - 0.2, max(logarithms) + 0.1))
    curves = [_curve(axes, points[method], colour) for method, colour in CURVES.items()]
    dots = [_dots(axes, points[method], colour) for method, colour in (CURVES | POINT).items()]
    names = [
        element("text", name, x=_at(axes.x(bits) - 7), y=_at(axes.y(mean) + 13), text_anchor="end", font_size=11)
        for bits, mean, name in points[COMPENSATED]
    ]
    title = element("text", mode, x=_at(left + WIDTH / 2), y=TOP - 10, text_anchor="middle", font_weight="bold")
    return element("g", _grid(axes), curves, dots, names, title)


def _grid(axes: Axes) -> list[Markup]:
    right, bottom = axes.left + WIDTH, TOP + HEIGHT
    lines = []
    for value in _ticks(axes.powers):
        y = _at(axes.y(value))
        lines.append(element("line", x1=_at(axes.left), x2=_at(right), y1=y, y2=y, stroke=GRID))
        lines.append(element("text", f"{value:g}", x=_at(axes.left - 6), y=_at(axes.y(value) + 4), text_anchor="end"))
    for whole in range(math.ceil(axes.bits[0]), math.floor(axes.bits[1]) + 1):
        x = _at(axes.x(whole))
        lines.append(element("line", x1=x, x2=x, y1=TOP, y2=bottom, stroke=GRID))
        lines.append(element("text", whole, x=x, y=bottom + 17, text_anchor="middle"))
    caption = element("text", "bits per weight", x=_at(axes.left + WIDTH / 2), y=bottom + 38, text_anchor="middle")
    return [*lines, caption]


def _ticks(powers: tuple[float, float]) -> list[float]:
    candidates = [
        step * 10.0**power for power in range(math.floor(powers[0]), math.ceil(powers[1]) + 1) for step in STEPS
    ]
    return [value for value in candidates if powers[0] <= math.log10(value) <= powers[1]]


def _curve(axes: Axes, points: Sequence[tuple[float, float, str]], colour: str) -> Markup:
    path = " ".join(f"{_at(axes.x(bits))},{_at(axes.y(mean))}" for bits, mean, _ in points)
    return element("polyline", points=path, fill="none", stroke=colour, stroke_width=2)


def _dots(axes: Axes, points: Sequence[tuple[float, float, str]], colour: str) -> list[Markup]:
    return [
        element(
            "circle",
            element("title", f"{name}: {bits:.2f} bits per weight, mean KL divergence {mean:.3g}"),
            cx=_at(axes.x(bits)),
            cy=_at(axes.y(mean)),
            r=4,
            fill=colour,
        )
        for bits, mean, name in points
    ]


def _legend(methods: set[str]) -> list[Markup]:
    drawn = [element("text", "mean KL divergence to FP8, held-out text", x=10, y=18)]
    x = LEFT + WIDTH + GAP - 80
    for method, colour in (CURVES | POINT).items():
        if method in methods:
            drawn.append(element("circle", cx=x, cy=14, r=5, fill=colour))
            drawn.append(element("text", method, x=x + 10, y=18))
            x += 30 + 8 * len(method)
    return drawn


def _at(value: float) -> str:
    return f"{value:.1f}"

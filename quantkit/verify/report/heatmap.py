"""The error of every expert of every layer as a picture: a small PNG inside the page, one pixel for an expert."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

from quantkit.verify.report.figures import figure
from quantkit.verify.report.markup import Markup, element

Rows = Sequence[Sequence[float | None]]
Color = tuple[int, int, int]

# From little to much; luminance changes in one direction only, so the order survives grey printing and colour
# blindness. Little is near the page's own background in both schemes.
LIGHT: tuple[Color, ...] = ((243, 239, 230), (233, 200, 140), (214, 129, 72), (160, 56, 60), (72, 20, 58))
DARK: tuple[Color, ...] = ((38, 36, 42), (98, 42, 84), (184, 66, 72), (230, 142, 70), (252, 232, 164))
_UNKNOWN = 255  # palette index, transparent
_SHADES = 255
_WORST = 5


def heat_map(rows: Rows) -> Markup:
    """The picture of rows [layers][experts], logarithmic, with axes, a legend and the worst experts named."""
    values = [value for row in rows for value in row if _is_drawable(value)]
    if not values:
        return element("p", "No expert has an error to draw.")
    low, high = _range([value for value in values if value is not None])
    width = max(len(row) for row in rows)
    worst = worst_experts(rows)
    top = ", ".join(f"layer {layer} expert {expert} ({figure(value)})" for value, layer, expert in worst[:_WORST])
    label = f"Heat map of {len(rows)} layers and {width} experts. Worst: {top}."
    shades = [[_shade(value, low, high) for value in [*row, *[None] * (width - len(row))]] for row in rows]
    legend = [list(range(_SHADES))]
    return element(
        "figure",
        element(
            "div",
            element("div", element("span", "layer 0"), element("span", f"layer {len(rows) - 1}"), class_="map-rows"),
            element("div", _picture(shades, label), _rings(worst, len(rows), width), class_="map-picture"),
            element("div", element("span", "expert 0"), element("span", f"expert {width - 1}"), class_="map-columns"),
            class_="map",
        ),
        element(
            "figcaption",
            element("span", figure(low)),
            _picture(legend, "Legend: from the smallest error on the left to the largest on the right"),
            element("span", figure(high)),
            element("span", "relative output error, logarithmic; a gap: no token reached the expert", class_="quiet"),
            class_="legend",
        ),
        class_="heat",
    )


def worst_experts(rows: Rows, count: int = 10) -> list[tuple[float, int, int]]:
    """(error, layer, expert) of the largest errors, the largest first; values that are no finite number come first."""
    found = [
        (value, layer, expert)
        for layer, row in enumerate(rows)
        for expert, value in enumerate(row)
        if value is not None
    ]
    found.sort(key=lambda one: (-one[0] if math.isfinite(one[0]) else -math.inf, one[1], one[2]))
    return found[:count]


def png(shades: Sequence[Sequence[int]], colors: Sequence[Color]) -> bytes:
    """A paletted PNG of shades 0 … 254 between the colours; shade 255 is transparent."""
    from PIL import Image

    image = Image.frombytes("P", (len(shades[0]), len(shades)), b"".join(map(bytes, shades)))
    image.putpalette(
        [channel for shade in range(_SHADES) for channel in _color(colors, shade / (_SHADES - 1))] + [0] * 3
    )
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=_UNKNOWN)
    return file.getvalue()


def _picture(shades: Sequence[Sequence[int]], label: str) -> Markup:
    return element(
        "picture",
        element("source", media="screen and (prefers-color-scheme: dark)", srcset=_data_uri(png(shades, DARK))),
        element("img", src=_data_uri(png(shades, LIGHT)), alt=label),
    )


def _rings(worst: Sequence[tuple[float, int, int]], layers: int, experts: int) -> Markup:
    rings = []
    for number, (value, layer, expert) in enumerate(worst[:_WORST], 1):
        x, y = f"{100 * (expert + 0.5) / experts:.2f}%", f"{100 * (layer + 0.5) / layers:.2f}%"
        said = element("title", f"{number}: layer {layer}, expert {expert}: {figure(value)}")
        rings.append(element("circle", said, class_="halo", cx=x, cy=y, r="7"))
        rings.append(element("circle", class_="ring", cx=x, cy=y, r="7"))
    return element("svg", *rings, class_="rings", width="100%", height="100%", aria_hidden="true")


def _data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


def _is_drawable(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the scale; the lowest hundredth shares the lowest shade, or single zeros would use up the scale."""
    ordered = sorted(values)
    return ordered[len(ordered) // 100], ordered[-1]


def _shade(value: float | None, low: float, high: float) -> int:
    if value is None:
        return _UNKNOWN
    if not math.isfinite(value):
        return _SHADES - 1
    if value <= low or high <= low:
        return 0
    return round((_SHADES - 1) * math.log(value / low) / math.log(high / low))


def _color(colors: Sequence[Color], share: float) -> Color:
    at = min(share * (len(colors) - 1), len(colors) - 1 - 1e-9)
    before, part = colors[int(at)], at - int(at)
    after = colors[int(at) + 1]
    return (_mix(before[0], after[0], part), _mix(before[1], after[1], part), _mix(before[2], after[2], part))


def _mix(start: int, end: int, part: float) -> int:
    return round(start + (end - start) * part)

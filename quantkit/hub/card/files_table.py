"""The table of all quantizations of a repo, and a picture of what their bytes buy."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from quantkit.hub.card.facts import QuantFacts, ReportFacts
from quantkit.verify.report.figures import ABSENT, figure
from quantkit.verify.report.markdown_text import code, plain, table

PICTURE = "quantkit/kld.png"
# Dotted name in the report -> column.
COLUMNS = {
    "ppl.quantized": "Perplexity",
    "kld.mean": "Mean KLD",
    "kld.p999": "99.9 % KLD",
    "same_top1": "Same top-1",
    "tool_calls.match_rate": "Tool calls match",
}
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 420, 90, 130, 40, 60
_BACKGROUND, _INK, _GRID, _POINT = (255, 255, 255), (40, 40, 40), (225, 225, 225), (30, 90, 160)


def files_table(facts: Sequence[QuantFacts]) -> str:
    """One row per quantization, smallest first; a dash stands for what was not measured."""
    head = ["Quantization", "Files", "Size", "Bits per weight", *COLUMNS.values(), "Verdict"]
    rows = [
        [
            code(one.name),
            _files(one),
            gigabytes(one.size),
            f"{one.bits_per_weight:.2f}",
            *[metric_cell(one.report, name) for name in COLUMNS],
            f"**{plain(one.report.verdict)}**" if one.report else ABSENT,
        ]
        for one in sorted(facts, key=lambda one: one.size)
    ]
    return table(head, rows)


def metric_cell(report: ReportFacts | None, name: str) -> str:
    """A figure of a report; a dash where it was not measured, and in words where it is no finite number."""
    if report is None:
        return ABSENT
    return "not finite" if f"metrics.{name}" in report.not_finite else figure(report.metrics.get(name))


def gigabytes(size: int) -> str:
    """A size as a person reads it, in decimal units."""
    power = min(int(math.log10(max(size, 1))) // 3, 4)
    return f"{size / 1000**power:.4g} {['B', 'kB', 'MB', 'GB', 'TB'][power]}"


def divergence_picture(facts: Sequence[QuantFacts]) -> bytes | None:
    """Mean KL divergence against size as a PNG; None where fewer than two quantizations have a divergence above 0."""
    points = [
        (one.size, value, one.name)
        for one in sorted(facts, key=lambda one: one.size)
        if one.report is not None and (value := one.report.metrics.get("kld.mean")) is not None and value > 0
    ]
    return _draw(points) if len(points) > 1 else None


def _files(facts: QuantFacts) -> str:
    first = facts.files[0].path
    if len(facts.files) == 1:
        return code(first)
    return f"{code(first)} and {len(facts.files) - 1} more"


def _draw(points: Sequence[tuple[int, float, str]]) -> bytes:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (_WIDTH, _HEIGHT), _BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    sizes, logs = [size for size, _, _ in points], [math.log10(value) for _, value, _ in points]
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    high += high == low
    margin = 0.05 * ((max(sizes) - min(sizes)) or max(sizes))
    start, end = min(sizes) - margin, max(sizes) + margin

    def x(size: float) -> float:
        return _LEFT + (size - start) / (end - start) * (right - _LEFT)

    def y(log: float) -> float:
        return bottom - (log - low) / (high - low) * (bottom - _TOP)

    for power in range(low, high + 1):
        draw.line([(_LEFT, y(power)), (right, y(power))], fill=_GRID)
        draw.text((_LEFT - 10, y(power)), f"{10.0**power:g}", fill=_INK, font=font, anchor="rm")
    for step in range(5):
        size = start + (end - start) * step / 4
        draw.line([(x(size), _TOP), (x(size), bottom)], fill=_GRID)
        draw.text((x(size), bottom + 8), gigabytes(int(size)), fill=_INK, font=font, anchor="ma")
    at = [(x(size), y(log)) for size, log in zip(sizes, logs, strict=True)]
    draw.line(at, fill=_POINT, width=1)
    for (left, top), (_, _, name) in zip(at, points, strict=True):
        draw.ellipse([left - 5, top - 5, left + 5, top + 5], fill=_POINT)
        draw.text((left + 9, top - 9), name.encode("ascii", "replace").decode()[:40], fill=_INK, font=font, anchor="lm")
    draw.text((_LEFT, 12), "mean KL divergence from the reference, nats", fill=_INK, font=font)
    draw.text(((_LEFT + right) / 2, _HEIGHT - 24), "size of the weights", fill=_INK, font=font, anchor="ma")
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()

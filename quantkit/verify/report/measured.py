"""The measurements: all figures, distribution of the divergence, domains, tool calls, layers, noise and engines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.verify.report.figures import figure, flatten, interval, part, title
from quantkit.verify.report.heatmap import heat_map, worst_experts
from quantkit.verify.report.markup import Child, Markup, element
from quantkit.verify.report.plots import Plot, bar, histogram, round_up, spans
from quantkit.verify.report.tables import by_row, filled, folded, metric, table
from quantkit.verify.report.text import cut

# Dotted name, the quantized model's figure, the reference's, interval, standard error and noise, as they are shown.
Row = tuple[str, str, str, str, str, str]

_MARKS = (("median", "median"), ("mean", "mean"), ("99 %", "p99"), ("99.9 %", "p999"))
# Columns of records, engines and positions, by their key.
COLUMNS = {
    "left": "Engine",
    "right": "Compared with",
    "ppl_left": "Perplexity",
    "ppl_right": "Perplexity there",
    "kld_mean": "Mean KLD",
    "kld": "Mean KLD",
    "same_top1": "Same top-1",
}


def other_figures(report: Mapping[str, Any]) -> list[Row]:
    """Every figure but those of tool calls."""
    return _rows(report, flatten(part(report, "metrics"), without=("domains", "tool_calls")))


def tool_call_figures(report: Mapping[str, Any]) -> list[Row]:
    """Every figure of tool calls over all categories."""
    calls = part(report, "metrics.tool_calls")
    return _rows(report, flatten(calls, without=("categories",), prefix="tool_calls."))


def all_figures(report: Mapping[str, Any]) -> Markup | None:
    """Every figure but those of tool calls, with the reference's own, its interval and the noise."""
    return _figures("All figures", other_figures(report))


def domains(report: Mapping[str, Any]) -> Markup | None:
    """The same figures for each kind of text."""
    rows = part(report, "metrics.domains")
    if not rows:
        return None
    means = {name: part(values, "kld").get("mean") for name, values in rows.items()}
    return element("div", _mean_bars(means), by_row("Figures by domain", "Domain", rows))


def distribution(report: Mapping[str, Any]) -> Markup | None:
    """The histogram of the divergence."""
    edges, counts = _histogram(report)
    if not counts:
        return None
    kld = part(report, "metrics.kld")
    marks = [(label, float(kld[name])) for label, name in _MARKS if _finite(kld.get(name))]
    said = ", ".join(f"{label} {figure(value)}" for label, value in marks)
    plot = Plot("histogram", "KL divergence of the tokens", f"Histogram; {said}.", "tokens", "KLD, nats, logarithmic")
    rows = histogram_rows(report)
    return element(
        "div",
        histogram(edges, counts, marks, plot),
        folded("Figures of this plot", table("Tokens by KL divergence", ["KLD", "Tokens"], rows, kind="figures")),
    )


def histogram_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(range, number of tokens) of every bar of the histogram."""
    edges, counts = _histogram(report)
    return [(interval(low, high), figure(count)) for low, high, count in zip(edges, edges[1:], counts)]


def positions(report: Mapping[str, Any]) -> Markup | None:
    """Divergence and same-top-1 along the passages."""
    found = [row for row in report.get("by_position") or [] if isinstance(row, Mapping)]
    if not found:
        return None
    labels = [f"{figure(row.get('from'))}\N{EN DASH}{figure(row.get('to'))}" for row in found]
    klds = [(label, 0.0, row.get("kld")) for label, row in zip(labels, found)]
    plot = Plot(
        "by-position", "Mean KL divergence by position", _spoken(klds), "mean KLD, nats", "Position in the passage"
    )
    rows: list[list[Child]] = [
        [label, figure(row.get("kld")), figure(row.get("same_top1"))] for label, row in zip(labels, found)
    ]
    head: list[Child] = ["Positions", "Mean KLD", "Same top-1"]
    return element(
        "div",
        _spans_from_zero(klds, plot),
        folded("Figures of this plot", table("Divergence by position", head, rows, kind="figures")),
    )


def tool_calls(report: Mapping[str, Any]) -> Markup | None:
    """Tool-call figures, whole and by category, and as MiniMax's own verifier counts."""
    categories = part(report, "metrics.tool_calls.categories")
    verifier = part(report, "provider_verifier")
    sides = {side: values for side, values in verifier.items() if isinstance(values, Mapping)}
    reference = part(report, "reference_metrics.tool_calls.categories")
    shown = [
        _figures("All tool calls", tool_call_figures(report)),
        by_row("By category, quantized", "Category", categories, prefix="tool_calls.") if categories else None,
        by_row("By category, reference", "Category", reference, prefix="tool_calls.") if reference else None,
        by_row("As MiniMax's Provider-Verifier counts", "Side", sides, prefix="tool_calls.") if sides else None,
    ]
    return element("div", shown) if any(shown) else None


def layers(report: Mapping[str, Any]) -> Markup | None:
    """The error of every expert as a heat map, then gain and routing of every layer."""
    found = part(report, "layers")
    error, gain, routing = found.get("error") or [], found.get("gain") or [], found.get("routing") or []
    shown: list[Child] = []
    if error:
        rows: list[list[Child]] = [
            [f"{number}", f"layer {layer}", f"expert {expert}", figure(value), _gain(gain, layer, expert)]
            for number, (value, layer, expert) in enumerate(worst_experts(error), 1)
        ]
        head: list[Child] = ["", "Layer", "Expert", "Error", "Gain"]
        shown += [heat_map(error), table("Experts with the largest error", head, rows, kind="figures narrow")]
    if gain:
        shown.append(_gains(gain))
    if routing:
        shown.append(_routing(routing))
    return element("div", shown) if shown else None


def noise(report: Mapping[str, Any]) -> Markup | None:
    """What the reference differs from itself when it is measured twice."""
    found = part(report, "noise")
    rows: list[list[Child]] = [[metric(name), figure(value)] for name, value in flatten(found).items()]
    return (
        table("The reference measured against itself", ["Figure", "Noise"], rows, kind="figures narrow")
        if rows
        else None
    )


def engines(report: Mapping[str, Any]) -> Markup | None:
    """The same weights on several engines."""
    found = [row for row in report.get("engines") or [] if isinstance(row, Mapping)]
    names = list(dict.fromkeys(name for row in found for name in row))
    head: list[Child] = [COLUMNS.get(name, title(name)) for name in names]
    rows: list[list[Child]] = [[cut(figure(row.get(name)), 200) for name in names] for row in found]
    return table("The same weights on two engines", head, rows, kind="figures") if rows else None


def _histogram(report: Mapping[str, Any]) -> tuple[list[float], list[int]]:
    found = part(report, "histogram.kld")
    edges, counts = list(found.get("edges") or []), list(found.get("counts") or [])
    return (edges, counts) if len(edges) == len(counts) + 1 else ([], [])


def _rows(report: Mapping[str, Any], values: Mapping[str, Any]) -> list[Row]:
    # Perplexity has its reference among the metrics, the others apart.
    references = flatten(part(report, "reference_metrics")) | {"ppl.quantized": values.get("ppl.reference")}
    intervals, floor = part(report, "intervals"), part(report, "noise")
    rows = []
    for name, value in values.items():
        if name == "ppl.reference" and "ppl.quantized" in values:
            continue
        limits = intervals.get(name) or {}
        span, error = interval(limits.get("low"), limits.get("high")), figure(limits.get("standard_error"))
        rows.append((name, figure(value), figure(references.get(name)), span, error, figure(floor.get(name))))
    return rows


def _figures(caption: str, rows: Sequence[Row]) -> Markup | None:
    if not rows:
        return None
    cells = [[metric(name), element("strong", value), *further] for name, value, *further in rows]
    head = ["Figure", "Quantized", "Reference", "95 % interval", "Standard error", "Noise"]
    return table(caption, *filled(head, cells), kind="figures")


def _gains(gain: Sequence[Sequence[float | None]]) -> Markup:
    rows: list[tuple[str, float | None, float | None]] = []
    for layer, values in enumerate(gain):
        finite = [value for value in values if value is not None and math.isfinite(value)]
        rows.append((str(layer), min(finite), max(finite)) if finite else (str(layer), None, None))
    ends = [end for _, start, stop in rows for end in (start, stop) if end is not None] or [1.0]
    reach = round_up(max(abs(end - 1) for end in ends))
    said = f"From {figure(min(ends))} to {figure(max(ends))}; 1 keeps the size of an expert's output."
    plot = Plot(
        "gain", "Gain of the experts by layer, smallest to largest", said, "gain, smallest to largest expert", "Layer"
    )
    return spans(rows, plot, low=1 - reach, high=1 + reach, kind="fill second")


def _routing(routing: Sequence[float | None]) -> Markup:
    """A mark for every layer; the axis ends at 1 and begins below the lowest mark."""
    rows = [(str(layer), value, value) for layer, value in enumerate(routing)]
    missing = [1 - value for value in routing if value is not None and math.isfinite(value)]
    plot = Plot("routing", "Same routing by layer", _spoken(rows), "share of experts chosen alike", "Layer")
    return spans(rows, plot, low=1 - round_up(max(missing, default=1.0)), high=1)


def _gain(gain: Sequence[Sequence[float | None]], layer: int, expert: int) -> str:
    known = layer < len(gain) and expert < len(gain[layer])
    return figure(gain[layer][expert] if known else None)


def _mean_bars(means: Mapping[str, Any]) -> Markup:
    """A bar for every domain, the longest of them as wide as its cell."""
    known = {name: float(mean) for name, mean in means.items() if _finite(mean)}
    most = max(known.values(), default=0.0) or 1.0
    bars = [
        element(
            "tr",
            element("th", cut(name, 100), scope="row"),
            element("td", bar(known.get(name, 0.0) / most, "fill")),
            element("td", figure(mean), class_="p"),
        )
        for name, mean in means.items()
    ]
    caption = element("caption", "Mean KL divergence, nats")
    return element("table", caption, element("tbody", bars), class_="expects domains")


def _spans_from_zero(rows: Sequence[tuple[str, float | None, float | None]], plot: Plot) -> Markup:
    ends = [end for _, _, end in rows if end is not None and math.isfinite(end)]
    return spans(rows, plot, low=0, high=round_up(max(ends, default=1.0)))


def _spoken(rows: Sequence[tuple[str, float | None, float | None]]) -> str:
    """A plot in words: all of a few values, else the smallest and the largest."""
    known = [(end, label) for label, _, end in rows if end is not None and math.isfinite(end)]
    if not known:
        return "No values."
    if len(known) <= 6:
        return "; ".join(f"{label}: {figure(end)}" for end, label in known) + "."
    (low, where_low), (high, where_high) = min(known), max(known)
    return f"Smallest {figure(low)} ({where_low}), largest {figure(high)} ({where_high})."


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)

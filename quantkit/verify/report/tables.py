"""Tables that scroll inside when they are wider than the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.verify.report.figures import ABSENT, columns, explanation, figure, flatten, title
from quantkit.verify.report.markup import Child, Markup, element
from quantkit.verify.report.text import cut

_LONGEST_NAME = 200


def table(caption: str, head: Sequence[Child], rows: Sequence[Sequence[Child]], *, kind: str = "") -> Markup:
    """A table with a heading for every row, its first cell; `caption` names the table to those who cannot see it."""
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", [element("th", cell, scope="col") for cell in head])),
            element("tbody", [_row(row) for row in rows]),
            class_=kind or None,
        ),
        class_="scroll",
        role="region",
        aria_label=caption,
        tabindex="0",
    )


def metric(name: str) -> Markup:
    """What a metric is called, what it says, and its dotted name below."""
    says, name = explanation(name), cut(name, _LONGEST_NAME)
    return element(
        "span",
        element("span", title(name), class_="metric"),
        element("span", says, class_="says") if says else None,
        element("code", name),
        class_="name",
    )


def by_row(caption: str, first: str, rows: Mapping[str, Mapping[str, Any]], *, prefix: str = "") -> Markup:
    """A table with a column for every figure that any of the rows has; `prefix` completes the figures' names."""
    names = columns(rows)
    head: list[Child] = [first, *[cut(title(prefix + name), _LONGEST_NAME) for name in names]]
    cells: list[list[Child]] = []
    for row, values in rows.items():
        leaves = flatten(values)
        cells.append([cut(row, _LONGEST_NAME), *[figure(leaves.get(name)) for name in names]])
    return table(caption, head, cells, kind="figures")


def filled(head: Sequence[Child], rows: Sequence[Sequence[Child]]) -> tuple[list[Child], list[list[Child]]]:
    """Head and rows without the columns in which no row has anything."""
    kept = [at for at in range(len(head)) if any(row[at] != ABSENT for row in rows)]
    return [head[at] for at in kept], [[row[at] for at in kept] for row in rows]


def folded(summary: str, *content: Child) -> Markup:
    """Content that is shown on request."""
    return element("details", element("summary", summary), *content)


def _row(cells: Sequence[Child]) -> Markup:
    return element("tr", element("th", cells[0], scope="row"), [element("td", cell) for cell in cells[1:]])

"""HTML elements from Python values. Whatever is not Markup already is escaped, so nothing can be forgotten."""

from __future__ import annotations

import html
from collections.abc import Iterable

from quantkit.verify.report.text import cut, visible

# No element holds more text of its own than this; parts that know better what matters cut earlier.
_LONGEST = 5000
_VOID = frozenset({"img", "meta", "source"})


class Markup(str):
    """HTML that stands for itself; only `element`, `join` and the page's own style sheet make it."""

    __slots__ = ()


Child = object


def element(name: str, /, *children: Child, **attributes: object) -> Markup:
    """The HTML of an element; children that are no Markup are text, cut where it is too long.

    Attributes lose a trailing underscore (`class_`) and have hyphens for inner ones; None and False leave one out.
    """
    opening = "".join([name, *(_attribute(key, value) for key, value in attributes.items())])
    if name in _VOID:
        return Markup(f"<{opening}>")
    return Markup(f"<{opening}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Markup:
    """Children one after the other; None is nothing, lists and tuples are flattened."""
    return Markup("".join(_child(child) for child in children))


def escaped(text: str) -> str:
    """Text for an element or a quoted attribute, invisible characters spelled out."""
    return html.escape(visible(text), quote=True)


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, list | tuple):
        return join(child)
    return escaped(cut(str(child), _LONGEST))


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escaped(str(value))}"'

"""What stands on a page or in a report: elements, text, and every number that has to be shown."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from quantkit.verify.report.figures import figure
from quantkit.verify.report.passages import probability

VOID = {"img", "meta", "source"}
# Matrices are drawn, not written out.
DRAWN = ("layers.",)


@dataclass
class Page(HTMLParser):
    """A parsed page: every start tag with its attributes, and the text outside of the style sheet."""

    html: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    unclosed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.unclosed.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.unclosed and self.unclosed[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def numbers_of(value: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """(dotted name, number) of everything in a report that has to be readable in it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from numbers_of(inner, f"{name}{key}.")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, inner in enumerate(value):
            yield from numbers_of(inner, f"{name}{number}.")
    elif isinstance(value, int | float) and not isinstance(value, bool) and not name.startswith(DRAWN):
        yield name.removesuffix("."), value


def shown(name: str) -> Callable[[object], str]:
    """How the number of that name is written: probabilities of tokens in percent, all else as a figure."""
    return probability if name.endswith(".p") else figure


def with_every_text(value: Any, text: str) -> Any:
    """A copy of a report in which every text is another one, names of domains and categories included."""
    if isinstance(value, Mapping):
        inner = {key: with_every_text(each, text) for key, each in value.items()}
        named = {"domains", "categories"} & set(inner)
        return inner | {
            key: {f"{text}{number}": each for number, each in enumerate(inner[key].values())} for key in named
        }
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [with_every_text(each, text) for each in value]
    return text if isinstance(value, str) else value

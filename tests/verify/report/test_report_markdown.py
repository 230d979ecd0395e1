"""The Markdown: the same figures, and nothing in it that acts on the page where it is pasted."""

import re
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from page_text import numbers_of, shown, with_every_text
from sample_report import sample_report

from quantkit.verify.report.markdown import render_markdown
from quantkit.verify.report.markdown_text import code, fence, plain

HOSTILE = (
    "![x](//example.org/x.png) [y](javascript:alert) <img src=x> &amp;",
    "```\n# out of the fence\n````` | cell | `code` ``",
    "| a | b |\n| --- | --- |\n\n<!-- gone\n\n---\n",
    "\u202eright to left\ud800\0",
    "1. one\n- two\n> three\n$x$ ~~gone~~ **bold** _it_ \\",
    "`",
    "  ",
)


def _tokens(text: str) -> list[Token]:
    """What somebody else's parser makes of Markdown, as GitHub's would, pieces of lines included."""
    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return [piece for block in blocks for piece in (block, *(block.children or []))]


def _text(text: str) -> str:
    leaves = {"text", "code_inline", "fence", "text_special"}
    return "\n".join(token.content for token in _tokens(text) if token.type in leaves)


def test_every_figure_is_there() -> None:
    text = _text(render_markdown(sample_report()))
    assert [name for name, value in numbers_of(sample_report()) if shown(name)(value) not in text] == []


def test_verdict_is_the_heading() -> None:
    first = render_markdown(sample_report()).splitlines()[0]
    assert first == "# FAIL: MiniMax-M2.7-AWQ against MiniMax-M2.7"


def test_a_check_stands_in_its_columns() -> None:
    rows = [line for line in render_markdown(sample_report()).splitlines() if "`tool_calls.arg_exact`" in line]
    assert rows[0].split(" | ")[:8] == [
        "| **FAIL**",
        "Arguments equal `tool_calls.arg_exact`",
        "0.8712",
        "0.9412",
        "0.8431 … 0.8977",
        "at most 0.02 below",
        "0.02",
        "\N{EN DASH}",
    ]


def test_rows_have_as_many_cells_as_their_head() -> None:
    kinds = [token.type for token in _tokens(render_markdown(with_every_text(sample_report(), "a | b `|` c")))]
    shape = [kind for kind in kinds if kind in ("thead_open", "th_open", "tr_open", "td_open")]
    width = count = 0
    for kind in [*shape, "tr_open"]:
        if kind == "thead_open":
            width = count = 0
        elif kind == "tr_open":
            assert count in (0, width)
            count = 0
        else:
            width += kind == "th_open"
            count += 1
    assert kinds.count("table_open") > 10


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    harmless, hostile = (render_markdown(with_every_text(sample_report(), each)) for each in ("x", text))
    acting = {"html_inline", "html_block", "image", "link_open", "s_open", "em_open", "hr", "blockquote_open"}
    assert not {token.type for token in _tokens(hostile)} & acting
    counted = [
        [
            sum(token.type == kind for token in _tokens(each))
            for kind in ("heading_open", "table_open", "bullet_list_open")
        ]
        for each in (harmless, hostile)
    ]
    assert counted[0] == counted[1]
    assert not re.search("[\0\u202e\ud800]", hostile)


@pytest.mark.parametrize("text", ["a`b", "``", "`x", "a|b", " x ", "a\\"])
def test_code_is_read_back(text: str) -> None:
    rows = _tokens(f"| h |\n| --- |\n| {code(text)} |")
    assert [token.content for token in rows if token.type == "code_inline"] == [text]


@pytest.mark.parametrize("text", ["1. x", "- x", "# x", "a_b_c *d* ~e~ <f> [g](h) &amp; \\", "=", "+ x", "x | y"])
def test_plain_is_read_back(text: str) -> None:
    pieces = [token for token in _tokens(plain(text)) if token.type in ("text", "text_special")]
    assert "".join(token.content for token in pieces) == text


def test_fence_is_longer_than_any_inside() -> None:
    text = "```\nx\n``````"
    fences = [token for token in _tokens(fence(text)) if token.type == "fence"]
    assert [token.content for token in fences] == [text + "\n"]


def test_long_texts_are_cut() -> None:
    assert len(render_markdown(with_every_text(sample_report(), "x y " * 25_000))) < 300_000


def test_empty_and_partial_reports_render() -> None:
    report = sample_report()
    empty: dict[str, Any] = {key: type(value)() for key, value in report.items()}
    for some in ({}, empty, dict.fromkeys(report), *({key: value} for key, value in report.items())):
        assert render_markdown(some).startswith("# ")

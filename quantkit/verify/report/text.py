"""Text that models wrote, made fit to be shown: cut to a length, with nothing in it that acts or hides."""

from __future__ import annotations

import unicodedata

# Joiners are part of emoji and of several scripts. All other format characters could reorder or hide what stands here.
_KEPT = frozenset("\n\t\u200c\u200d")
_SPELLED_OUT = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_CONTROL_PICTURES = 0x2400
_DELETE, _DELETE_PICTURE = 0x7F, "\u2421"


def visible(text: str) -> str:
    """The text with every invisible, reordering or unpaired character spelled out, such as ⟨U+202E⟩ or ␀."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible_character(character) for character in text)


def cut(text: str, limit: int) -> str:
    """At most `limit` characters from the beginning, with a note of how many were left out."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … [{len(text) - limit:,} more characters]"


def cut_front(text: str, limit: int) -> str:
    """At most `limit` characters from the end, with a note of how many were left out."""
    if len(text) <= limit:
        return text
    return f"[{len(text) - limit:,} characters before] … {text[len(text) - limit :]}"


def token_text(text: str, limit: int = 80) -> str:
    """A token's text on one line: line ends, tabs and outer spaces have signs of their own."""
    if not text:
        return "(empty)"
    inner = text.strip(" ")
    front = len(text) - len(text.lstrip(" "))
    back = len(text) - front - len(inner)
    marked = "␣" * front + inner + "␣" * back
    return cut(marked.replace("\n", "↵").replace("\t", "⇥"), limit)


def _visible_character(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _SPELLED_OUT:
        return character
    code = ord(character)
    if code < 0x20:
        return chr(_CONTROL_PICTURES + code)
    return _DELETE_PICTURE if code == _DELETE else f"⟨U+{code:04X}⟩"

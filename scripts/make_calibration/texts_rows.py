"""Own conversations from texts/, and translations of a program's messages into more than thirty languages."""

# ruff: noqa: E501 (sentences and tables, one per line)

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from make_calibration.packages import TRANSLATIONS, read_files

TEXTS = Path(__file__).with_name("texts")
LANGUAGES = {
    "ar": "Arabic", "bg_BG": "Bulgarian", "bn_BD": "Bengali", "de": "German", "el": "Greek", "es_ES": "Spanish",
    "fa": "Persian", "fr_FR": "French", "gu_IN": "Gujarati", "ha": "Hausa", "hi_IN": "Hindi", "ht": "Haitian Creole",
    "id": "Indonesian", "it": "Italian", "ka": "Georgian", "km": "Khmer", "ko": "Korean", "mr": "Marathi", "my": "Burmese",
    "pa": "Punjabi", "pt_BR": "Portuguese", "sw_TZ": "Swahili", "te": "Telugu", "uk": "Ukrainian", "ur_PK": "Urdu",
    "vi": "Vietnamese", "yo": "Yoruba", "zh_Hans": "Chinese",
}  # fmt: skip
# Scripts that a byte-level vocabulary cuts finely fill a share quickly; the widely used languages get more rows.
MORE = {
    "zh_Hans": 4,
    "es_ES": 3,
    "fr_FR": 3,
    "de": 3,
    "pt_BR": 3,
    "ko": 2,
    "ar": 2,
    "hi_IN": 2,
    "vi": 2,
    "id": 2,
    "it": 2,
}
_ASKS = (
    "Translate these messages of a program into {language}. Keep everything in braces as it is.",
    "Please give me the {language} version of these sentences:",
    "I am localising a learning platform. {language}, please, one line each:",
)  # fmt: skip


def conversations(name: str, whole: bool) -> list[dict[str, Any]]:
    """Conversations of a text file; `whole` keeps a section together, otherwise each question stands alone."""
    rows = []
    for section in (TEXTS / name).read_text(encoding="utf-8").split("== ")[1:]:
        title, _, body = section.partition("\n")
        turns: list[dict[str, Any]] = []
        for line in filter(None, body.split("\n")):
            role = "user" if line.startswith("> ") else "assistant"
            turns.append({"role": role, "content": line.removeprefix("> ").replace("\\n", "\n")})
        size = len(turns) if whole else 2
        rows += [{"messages": turns[n : n + size], "topic": title} for n in range(0, len(turns), size)]
    return rows


def _messages(folder: Path) -> dict[str, dict[str, str]]:
    """Every language's messages by key; sentences only."""
    found: dict[str, dict[str, str]] = {}
    for path, text in read_files(TRANSLATIONS, folder):
        if path.endswith("-messages.json"):
            language = path.split("/")[2]
            prefix = path.rpartition("/")[2]
            found.setdefault(language, {}).update({f"{prefix}/{key}": value for key, value in json.loads(text).items()})
    return found


def _sentence(text: str) -> bool:
    return 45 <= len(text) <= 400 and "plural" not in text and "Kolibri" not in text and bool(re.search(r"[.!?]", text))


def translations(folder: Path, rng: random.Random) -> list[dict[str, Any]]:
    """Chats that ask for translations, the answers being those of the program's own translators."""
    found = _messages(folder)
    english = {key: text for key, text in found["en"].items() if _sentence(text)}
    rows = []
    for code, language in LANGUAGES.items():
        pairs = [(text, found[code][key]) for key, text in english.items() if found[code].get(key, text) != text]
        distinct = list(dict(pairs).items())
        rng.shuffle(distinct)
        size, count = 6, 6 * MORE.get(code, 1)
        for n in range(0, min(len(distinct), size * count), size):
            part = distinct[n : n + size]
            ask = (
                rng.choice(_ASKS).format(language=language)
                + "\n\n"
                + "\n".join(f"{i}. {a}" for i, (a, _) in enumerate(part, 1))
            )
            answer = "\n".join(f"{i}. {b}" for i, (_, b) in enumerate(part, 1))
            turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
            rows.append(
                {"messages": turns, "package": str(TRANSLATIONS), "licence": TRANSLATIONS.licence, "topic": language}
            )
    return rows

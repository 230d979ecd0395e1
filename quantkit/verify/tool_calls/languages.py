"""Which script and, for languages in Latin letters, which language a text is in; enough to notice a wrong one."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

LATIN, CYRILLIC = "LATIN", "CYRILLIC"
# First words of Unicode's character names.
_SCRIPTS = {
    "LATIN": LATIN,
    "CYRILLIC": CYRILLIC,
    "GREEK": "GREEK",
    "ARABIC": "ARABIC",
    "HEBREW": "HEBREW",
    "DEVANAGARI": "DEVANAGARI",
    "BENGALI": "BENGALI",
    "TAMIL": "TAMIL",
    "THAI": "THAI",
    "CJK": "HAN",
    "HIRAGANA": "KANA",
    "KATAKANA": "KANA",
    "KATAKANA-HIRAGANA": "KANA",
    "HANGUL": "HANGUL",
}
# What languages are written in; all others in Latin letters.
_LANGUAGE_SCRIPTS = {
    "ja": {"HAN", "KANA"},
    "zh": {"HAN"},
    "ko": {"HANGUL", "HAN"},
    "ru": {CYRILLIC},
    "uk": {CYRILLIC},
    "bg": {CYRILLIC},
    "el": {"GREEK"},
    "ar": {"ARABIC"},
    "fa": {"ARABIC"},
    "ur": {"ARABIC"},
    "he": {"HEBREW"},
    "hi": {"DEVANAGARI"},
    "mr": {"DEVANAGARI"},
    "bn": {"BENGALI"},
    "ta": {"TAMIL"},
    "th": {"THAI"},
}
# Frequent words that the other languages here do not have, or rarely.
_WORDS = {
    "en": "the and of is are to you your for with this that it was have not what",
    "de": "der die das und ist nicht ein eine für mit auf sie ich den dem wird sind es von im zu",
    "fr": "le la les et est une des pour dans que vous je du avec sur pas ce il elle sont à",
    "es": "el la los las y es una para con que por del en se su más está son no al",
    "pt": "o a os as e é uma para com que por do da em não se mais está são ao um",
    "it": "il la gli e è una per con che di del non si più sono al le un nel",
    "nl": "de het een en is van voor met niet dat op zijn je ik aan te wordt",
    "pl": "i w na nie jest się z do że to dla są o po jak ale od",
    "tr": "ve bir bu için ile de da değil olarak var daha çok ne mi en olan",
    "vi": "và của là có cho không một các được trong với này để người những",
    "id": "dan yang di untuk dengan ini itu tidak dari ke pada adalah akan anda saya",
    "sv": "och är en ett för med inte att det som på av till har jag du",
    "cs": "a je se na v pro s že to není jsou od do jako ale z",
}
_WORD_SETS = {language: frozenset(words.split()) for language, words in _WORDS.items()}
_WORD = re.compile(r"[^\W\d_]+")


@lru_cache(maxsize=65536)
def script_of(character: str) -> str | None:
    """The script of a letter, None for other characters and rarer scripts."""
    if not character.isalpha():
        return None
    return _SCRIPTS.get(unicodedata.name(character, "").split(" ", 1)[0])


def scripts_in(text: str) -> Counter[str]:
    """How many letters of each script a text has."""
    return Counter(script for script in map(script_of, text) if script)


def scripts_of_language(language: str) -> set[str]:
    """What a language is written in."""
    return _LANGUAGE_SCRIPTS.get(language, {LATIN})


def follows(text: str, language: str) -> bool | None:
    """Whether a text is in a language, None where it has no letters to tell by.

    Half of its letters or more have to be of the language's script; of languages in Latin letters those known here
    have to have as many of their frequent words in it as English has of its own.
    """
    found = scripts_in(text)
    letters = sum(found.values())
    if not letters:
        return None
    scripts = scripts_of_language(language)
    if 2 * sum(found[script] for script in scripts) < letters:
        return False
    if language == "ja":  # Chinese has the same letters but for kana
        return found["KANA"] > 0
    if language == "en" or language not in _WORD_SETS:
        return True
    words = [word.lower() for word in _WORD.findall(text)]
    own = sum(word in _WORD_SETS[language] for word in words)
    return own >= sum(word in _WORD_SETS["en"] for word in words)


def foreign_scripts(text: str, known: str, language: str | None) -> set[str]:
    """Scripts of letters in a text that are neither Latin, nor in `known` text, nor those of a language."""
    allowed = {LATIN, "GREEK"} | scripts_in(known).keys() | (scripts_of_language(language) if language else set())
    if allowed & {"HAN", "KANA", "HANGUL"}:  # texts in these mix them
        allowed |= {"HAN", "KANA", "HANGUL"}
    return set(scripts_in(text)) - allowed

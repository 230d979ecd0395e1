"""Licences of the models that quantkit quantizes: which text it is, and what a card has to say of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FILE_NAME = "LICENSE"
CONTACT = "api@minimax.io"


@dataclass(frozen=True)
class License:
    """A licence as the metadata of a card names it, and the notice at the card's top.

    `identifier` is the Hub's ("other" for those that it does not know, which then need a `name`); `duties` are what
    whoever passes the model on has to keep to.
    """

    identifier: str
    name: str | None
    title: str
    non_commercial: bool = False
    built_with: str | None = None
    duties: tuple[str, ...] = ()

    def metadata(self) -> dict[str, str]:
        """The fields of a card's metadata."""
        fields = {"license": self.identifier}
        if self.name is not None:
            fields["license_name"] = self.name
        return fields | ({"license_link": FILE_NAME} if self.identifier == "other" else {})


def license_of(text: str) -> License | None:
    """Return which licence `text` is, None for one that is not known here."""
    flat = " ".join(text.split())
    title = " ".join(next((line for line in text.splitlines() if line.strip()), "").split())
    for known, build in _KNOWN:
        if known(title, flat):
            return build(flat)
    return None


def license_findings(license_file: Path | None, source_sha256: str | None = None, card: str | None = None) -> list[str]:
    """Why a repo with this LICENSE and card must not be published; an empty list where nothing is wrong.

    `source_sha256` is the hash of the LICENSE of the model's own repo; None where it is not known.
    """
    if license_file is None or not license_file.is_file():
        where = license_file or FILE_NAME
        return [f"{where}: missing; the model's own LICENSE must go along: copy it there, or give it with --license"]
    raw = license_file.read_bytes()
    if source_sha256 is not None and hashlib.sha256(raw).hexdigest() != source_sha256:
        return [f"{license_file}: differs from the LICENSE of the source; copy that one byte for byte"]
    found = license_of(raw.decode(errors="replace"))
    if found is None:
        return [f"{license_file}: neither a MiniMax licence nor Apache-2.0 or MIT; give the model's own with --license"]
    return [] if card is None else card_findings(card, found)


def card_findings(card: str, license: License) -> list[str]:
    """What a card lacks of what this licence asks for."""
    from quantkit.hub.card.metadata import parse_metadata

    data, trouble = parse_metadata(card)
    if data is None:
        return [f"README.md: {trouble}"]
    findings = [
        f"README.md: the metadata has {field}: {data.get(field)}, the licence is {value}"
        for field, value in license.metadata().items()
        if data.get(field) != value
    ]
    start = card.split("\n## ", 1)[0]
    if license.non_commercial and "non-commercial" not in start.lower().split("---")[-1]:
        findings.append("README.md: does not say at its top that the licence is non-commercial")
    if license.built_with is not None and license.built_with not in start:
        findings.append(f"README.md: does not say {license.built_with!r} at its top")
    return findings


def _non_commercial(flat: str) -> License:
    family = _family(flat)
    return License(
        identifier="other",
        name=f"minimax-{family.lower()}-non-commercial" if family else "minimax-non-commercial",
        title=f"MiniMax {family} non-commercial licence".replace("  ", " "),
        non_commercial=True,
        built_with=f"Built with MiniMax {family}".strip(),
        duties=(
            "Free of charge for non-commercial use: self-hosting for yourself, research that is not for profit, and "
            "changes made for these.",
            f"Commercial use, which includes serving this quantization or what is derived from it commercially, needs "
            f"prior written permission from MiniMax ({CONTACT}).",
            "Whoever passes these files on must pass on the LICENSE file with them. Its appendix forbids some uses "
            "altogether.",
        ),
    )


def _modified_mit(flat: str) -> License:
    shown = re.search(r"prominently display [“\"'](.+?)[”\"']", flat)
    name = shown[1] if shown else "MiniMax"
    return License(
        identifier="other",
        name="modified-mit",
        title="modified MIT licence",
        built_with=f"Built with {name}",
        duties=(f"Commercial products may have to display “{name}” in their user interface: see the LICENSE file.",),
    )


def _family(flat: str) -> str:
    """The model that a text of MiniMax's speaks of: M2, M2.7."""
    found = re.search(r"MiniMax[- ]?(M\d+(?:\.\d+)*)", flat)
    return found[1] if found else ""


# (title line, whole text on one line) -> whether it is that licence; the first that fits decides.
_KNOWN: tuple[tuple[Callable[[str, str], bool], Callable[[str], License]], ...] = (
    (
        lambda title, flat: "NON-COMMERCIAL" in flat[:400].upper() and "minimax" in flat.lower(),
        _non_commercial,
    ),
    (
        lambda title, flat: title.upper().endswith("MIT LICENSE") and "our only modification" in flat.lower(),
        _modified_mit,
    ),
    (
        lambda title, flat: "Apache License" in flat and "Version 2.0" in flat,
        lambda flat: License("apache-2.0", None, "Apache License 2.0"),
    ),
    (
        lambda title, flat: (
            re.fullmatch(r"(The )?MIT License( \(MIT\))?", title, re.IGNORECASE) is not None
            and flat.upper().endswith("DEALINGS IN THE SOFTWARE.")
        ),
        lambda flat: License("mit", None, "MIT licence"),
    ),
)

"""Which licence a text is, what a card has to say of it, and what publishing is refused for."""

import hashlib
from pathlib import Path

import pytest

from quantkit.hub.card import license_findings, license_of

# The beginnings and the marks of the real texts; what stands between is no matter for telling them apart.
MIT_BODY = (
    "Permission is hereby granted, free of charge, to any person.\n\nTHE SOFTWARE IS PROVIDED AS IS, DEALINGS IN THE "
)
NON_COMMERCIAL = "NON-COMMERCIAL LICENSE\n\nCopyright 2026 MiniMax\n\nUsers show “Built with MiniMax M2.7”.\n"
MODIFIED = (
    f"MIT License\n\nCopyright 2025 MiniMax AI.\n\n{MIT_BODY}SOFTWARE.\n\nOur only modification is that, if it is "
    "used for commercial products, you shall prominently display “MiniMax M2.5” on the user interface.\n"
)
MIT = f"MIT License\n\nCopyright 2025 MiniMax AI.\n\n{MIT_BODY}\nSOFTWARE.\n"


@pytest.mark.parametrize(
    ("text", "fields", "non_commercial", "built_with"),
    [
        (
            NON_COMMERCIAL,
            {"license": "other", "license_name": "minimax-m2.7-non-commercial", "license_link": "LICENSE"},
            True,
            "Built with MiniMax M2.7",
        ),
        (
            MODIFIED,
            {"license": "other", "license_name": "modified-mit", "license_link": "LICENSE"},
            False,
            "Built with MiniMax M2.5",
        ),
        (MIT, {"license": "mit"}, False, None),
    ],
)
def test_texts_are_told_apart(text: str, fields: dict[str, str], non_commercial: bool, built_with: str | None) -> None:
    found = license_of(text)
    assert found is not None
    assert found.metadata() == fields
    assert found.non_commercial is non_commercial
    assert found.built_with == built_with


def test_line_ends_and_blanks_do_not_matter() -> None:
    assert license_of("\n\n" + NON_COMMERCIAL.replace("\n", "\r\n")) == license_of(NON_COMMERCIAL)


def test_a_fixture_under_apache_is_recognised(tiny_m2: Path) -> None:
    found = license_of((tiny_m2 / "LICENSE").read_text())
    assert found is not None
    assert found.identifier == "apache-2.0"


def test_mit_with_more_conditions_is_not_taken_for_mit() -> None:
    assert license_of(MIT + "\nNobody may use it on Sundays.\n") is None


@pytest.mark.parametrize("text", ["", "All rights reserved.", "NON-COMMERCIAL LICENSE of somebody else"])
def test_other_texts_are_not_known(text: str) -> None:
    assert license_of(text) is None


def test_missing_changed_and_unknown_licences_are_findings(tmp_path: Path) -> None:
    path = tmp_path / "LICENSE"
    assert "missing" in license_findings(path)[0]
    assert "missing" in license_findings(None)[0]
    path.write_text(NON_COMMERCIAL)
    assert license_findings(path) == []
    assert license_findings(path, hashlib.sha256(NON_COMMERCIAL.encode()).hexdigest()) == []
    path.write_text(NON_COMMERCIAL + " ")
    assert "differs" in license_findings(path, hashlib.sha256(NON_COMMERCIAL.encode()).hexdigest())[0]
    path.write_text("mine")
    assert "--license" in license_findings(path)[0]


def test_a_card_without_the_fields_or_the_notice_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "LICENSE"
    path.write_text(NON_COMMERCIAL)
    fields = "license: other\nlicense_name: minimax-m2.7-non-commercial\nlicense_link: LICENSE"
    notice = "> Built with MiniMax M2.7\n\n> Non-commercial licence.\n"
    assert license_findings(path, card=f"---\n{fields}\n---\n# X\n{notice}\n## Files\n") == []
    mislabelled = fields.replace("minimax-m2.7-non-commercial", "modified-mit")
    assert "modified-mit" in license_findings(path, card=f"---\n{mislabelled}\n---\n# X\n{notice}")[0]
    below = license_findings(path, card=f"---\n{fields}\n---\n# X\n\n## Files\n\n{notice}")
    assert len(below) == 2
    assert "cannot be read" in license_findings(path, card="---\n[\n---\n")[0]

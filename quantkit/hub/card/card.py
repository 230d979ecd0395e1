"""The card of a repo: one page out of the facts of all its quantizations and the licence of their model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from quantkit.errors import BadInput
from quantkit.hub.card.facts import RECORDS, QuantFacts, ReportFacts
from quantkit.hub.card.files_table import PICTURE, divergence_picture, files_table
from quantkit.hub.card.licence import FILE_NAME, License, license_of
from quantkit.hub.card.making import calibration_section, issues_section, making_section, origin_section
from quantkit.hub.card.metadata import card_metadata
from quantkit.hub.card.quality import not_measured_section, quality_section
from quantkit.hub.card.running import memory_section, run_section
from quantkit.verify.report.markdown_text import bullets, code, plain, section

_LINE = 600


@dataclass(frozen=True)
class Card:
    """README.md and the pictures that it shows, by their path in the repo."""

    text: str
    pictures: dict[str, bytes] = field(default_factory=dict)


def build_card(facts: Sequence[QuantFacts], repo: str, license_text: str) -> Card:
    """Return the card of `repo` (owner/name), which holds all of `facts`.

    Raises BadInput for a licence that is not known, and for facts that do not belong into one repo: of different
    sources or kinds, or two of one name.
    """
    license = license_of(license_text)
    if license is None:
        raise BadInput(f"{repo}: {FILE_NAME}: neither a MiniMax licence nor Apache-2.0 or MIT; give the model's own")
    ordered = sorted(facts, key=lambda one: (one.size, one.name))
    base_model = _base_model(ordered, repo)
    picture = divergence_picture(ordered)
    metadata = card_metadata(ordered, repo, base_model, license)
    blocks = [
        f"---\n{metadata.to_yaml(line_break=chr(10))}\n---",
        f"# {plain(repo.partition('/')[2])}",
        _notice(license),
        _opening(ordered, base_model),
        section("Files", files_table(ordered), _legend(ordered), _shown(picture)),
        quality_section(ordered),
        not_measured_section(ordered),
        run_section(ordered, repo),
        memory_section(ordered),
        making_section(ordered),
        calibration_section(ordered),
        issues_section(ordered),
        origin_section(ordered),
        section("Licence", bullets([f"{license.title}: see {FILE_NAME}.", *license.duties], _LINE)),
    ]
    text = "\n\n".join(block for block in blocks if block) + "\n"
    return Card(text, {PICTURE: picture} if picture is not None else {})


def _base_model(facts: Sequence[QuantFacts], repo: str) -> str | None:
    """The repo of the source, None where no file tells. All have to be of one."""
    if not facts:
        raise BadInput(f"{repo}: no quantization to describe")
    names = [one.name for one in facts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(f"{repo}: two quantizations are called {twice[0]}; rename the files of one of them")
    if len({one.kind for one in facts}) > 1:
        raise BadInput(f"{repo}: GGUF and INT4 files do not go into one repo; publish them to two")
    if len(facts) > 1 and facts[0].kind != "gguf":
        raise BadInput(f"{repo}: holds {names[0]} already; a checkpoint needs a repo of its own")
    sources = sorted({one.source.repo for one in facts if one.source is not None})
    layouts = {one.source_layout_sha256 for one in facts if one.source_layout_sha256}
    if len(sources) > 1 or len(layouts) > 1:
        raise BadInput(f"{repo}: quantizations of different models or versions; use two repos")
    return sources[0] if sources else None


def _notice(license: License) -> str:
    lines = []
    if license.built_with is not None:
        lines.append(f"**{plain(license.built_with)}**")
    if license.non_commercial:
        lines.append(
            f"**Non-commercial licence.** These files are under the model's [{plain(license.title)}]({FILE_NAME}); "
            "commercial use needs prior written permission from MiniMax."
        )
    else:
        lines.append(f"These files are under the model's own licence, [{plain(license.title)}]({FILE_NAME}).")
    return "\n>\n".join(f"> {line}" for line in lines)


def _opening(facts: Sequence[QuantFacts], base_model: str | None) -> str:
    one = facts[0]
    linked = f"[{plain(base_model)}](https://huggingface.co/{base_model})" if base_model else plain(one.model)
    version = one.versions.get("quantkit", "")
    what = f"One quantization ({plain(one.scheme)})" if len(facts) == 1 else f"{len(facts)} quantizations"
    return f"{what} of {linked}, made with quantkit {plain(version)} out of the original's own weights."


def _legend(facts: Sequence[QuantFacts]) -> str:
    said = [f"\N{EN DASH} means not measured. The records behind this table are in {code(RECORDS)}."]
    undecided = [one.name for one in facts if one.report is not None and one.report.verdict == "INCONCLUSIVE"]
    if undecided:
        said.append(
            f"INCONCLUSIVE ({plain(', '.join(undecided))}): no check failed, but more has to be measured to decide."
        )
    asked = {_asked(one.report) for one in facts if one.report is not None}
    if len(asked) > 1:
        said.append(
            "**Not all rows were measured alike**: compare only those with the same reference, texts and engine."
        )
    return " ".join(said)


def _asked(report: ReportFacts) -> tuple[object, ...]:
    """What has to be the same for figures to be held against each other."""
    sides = [(side.engine, side.engine_version) for side in (report.reference, report.quantized)]
    return report.reference.name, *sides, tuple(sorted(report.texts.items())), report.gate_sha256


def _shown(picture: bytes | None) -> str:
    return f"![Mean KL divergence from the reference against the size of the weights]({PICTURE})" if picture else ""

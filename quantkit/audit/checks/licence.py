"""Checks of licence and card. M2.7's licence is non-commercial and nothing else; its older sisters have others."""

from __future__ import annotations

import re
from collections.abc import Iterator

from quantkit.audit.findings import Check, Severity, listed
from quantkit.audit.repository import CARD, NEWEST, Repository

LICENCE_NAME = "minimax-m2.7-non-commercial"
NON_COMMERCIAL = re.compile(r"non[ -]?commercial", re.IGNORECASE)


def _file_missing(repository: Repository) -> Iterator[str]:
    if not repository.licences and (repository.files.complete or repository.folders):
        yield "LICENSE: missing"


def _file_other(repository: Repository) -> Iterator[str]:
    licences = repository.licences
    if repository.base == NEWEST and licences and not any(NON_COMMERCIAL.search(text) for text in licences.values()):
        yield f"{listed(list(licences))}: not {NEWEST}'s licence, which is non-commercial"


def _card_missing(repository: Repository) -> Iterator[str]:
    if repository.files.complete and not repository.has_card:
        yield f"{CARD}: missing"


def _card_without_metadata(repository: Repository) -> Iterator[str]:
    if repository.has_card and repository.card is None and repository.files.complete:
        yield f"{CARD}: no metadata in YAML at its top, or damaged ones"


def _label(repository: Repository) -> Iterator[str]:
    card = repository.card
    if card is None or repository.base != NEWEST:
        return
    stated = card.get("license")
    if stated != "other":
        yield f"{CARD}: license is {stated!r}; {NEWEST}'s has no label of its own there and is `other`"
    name = card.get("license_name")
    if stated == "other" and name is None:
        yield f"{CARD}: license_name is missing"
    elif name is not None and not NON_COMMERCIAL.search(str(name)):
        yield f"{CARD}: license_name is {name!r}; {NEWEST}'s licence is non-commercial"
    if stated == "other" and not card.get("license_link"):
        yield f"{CARD}: license_link is missing"


def _key_label(repository: Repository) -> Iterator[str]:
    if repository.base != NEWEST:
        return
    for model in repository.ggufs:
        stated = [str(model.keys[key]) for key in ("general.license", "general.license.name") if key in model.keys]
        honest = any(value == "other" or NON_COMMERCIAL.search(value) for value in stated)
        if stated and not honest:
            yield f"{model.path}: key general.license is {' / '.join(stated)}; {NEWEST}'s licence is non-commercial"


def _base_model(repository: Repository) -> Iterator[str]:
    if repository.card is not None and not repository.base_models:
        yield f"{CARD}: base_model is missing"


def _base_relation(repository: Repository) -> Iterator[str]:
    card = repository.card
    if card is not None and repository.base_models and card.get("base_model_relation") != "quantized":
        stated = card.get("base_model_relation")
        yield f"{CARD}: base_model_relation is {'missing' if stated is None else repr(stated)}"


COPY = "copy the original's LICENSE verbatim: it has to go along with every copy"
CHECKS = (
    Check("licence-missing", Severity.WARNING, _file_missing, COPY),
    Check("licence-other", Severity.WARNING, _file_other, COPY),
    Check("licence-mislabelled", Severity.WARNING, _label,
          f"write license: other, license_name: {LICENCE_NAME}, license_link: LICENSE"),
    Check("gguf-licence-mislabelled", Severity.WARNING, _key_label,
          f"set it to other, with general.license.name {LICENCE_NAME}"),
    Check("card-missing", Severity.WARNING, _card_missing, "write one, with its metadata"),
    Check("card-metadata-missing", Severity.WARNING, _card_without_metadata,
          "write license, base_model and base_model_relation"),
    Check("base-model-missing", Severity.WARNING, _base_model, f"write base_model: MiniMaxAI/{NEWEST}"),
    Check("base-model-relation", Severity.WARNING, _base_relation, "write base_model_relation: quantized"),
)  # fmt: skip

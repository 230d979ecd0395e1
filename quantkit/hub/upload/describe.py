"""What is said of the files to publish: facts and reports of each model, and the records of the repo's other ones."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from quantkit.errors import BadInput
from quantkit.hub.address import Address
from quantkit.hub.card import RECORDS, QuantFacts, facts_of, public_report, read_report, report_matches
from quantkit.hub.card.facts import FORMAT, GGUF
from quantkit.hub.repo_files import RepoFiles
from quantkit.hub.upload.collect import Collection
from quantkit.hub.upload.origin import source_of
from quantkit.hub.upload.repository import State
from quantkit.recipe.recipe import Recipe

RECORD_PATH = re.compile(rf"{RECORDS}/[^/]+\.json")
FAIL = "FAIL"
# Of a report; its Markdown says what the card says.
REPORT_FILES = ("report.json", "report.html")


def describe(
    collection: Collection, reports: Sequence[Path], *, unverified: bool
) -> tuple[list[QuantFacts], dict[str, bytes]]:
    """Facts of every model, its files at their places in the repo, and the files of the reports by place.

    Raises BadInput for a report of none of the models, and, unless `unverified` is said, for a model without a report
    and for one that failed. An importance matrix that none of the models was made with leaves the collection.
    """
    mine = _assign(collection, reports)
    places = {path.name: place for place, path in collection.weights.items()}
    facts: list[QuantFacts] = []
    files: dict[str, bytes] = {}
    used = False
    for model in collection.models:
        source = source_of(model[0])
        one = facts_of(model, mine[model], source=source)
        if one.imatrix is not None and collection.imatrix is not None:
            one, used = facts_of(model, mine[model], source=source, imatrix=collection.imatrix), True
        _check_verdict(model[0], one, unverified)
        facts.append(one.placed([places[file.path] for file in one.files]))
        if one.kind == GGUF:
            files[f"{RECORDS}/{one.name}/recipe.yaml"] = recipe_file(one)
        if mine[model]:
            newest = max(mine[model], key=lambda path: read_report(path).created or "")
            public = public_report(newest)
            files |= {f"{RECORDS}/{one.name}/{name}": public[name] for name in REPORT_FILES}
    if not used:
        collection.drop_imatrix()
    return facts, files


def recipe_file(facts: QuantFacts) -> bytes:
    """The recipe of a GGUF as a file for --recipe."""
    kept = {key: value for key, value in facts.settings.items() if key in Recipe.model_fields and value is not None}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True).encode()


def record(facts: QuantFacts) -> bytes:
    """The record that is kept in the repo, from which later cards are made."""
    return (json.dumps(facts.as_json(), indent=1, sort_keys=True) + "\n").encode()


def other_records(repo: str, state: State | None, mine: Sequence[QuantFacts]) -> list[QuantFacts]:
    """Facts of the quantizations that the repo holds already beside `mine`.

    Raises BadInput where it holds one of mine in other files, split elsewhere: nobody would know which ones to load.
    """
    if state is None:
        return []
    files = RepoFiles(Address(repo), (state.commit, dict(state.files)))
    own = {one.record_name: one for one in mine}
    found = []
    for path in sorted(state.files):
        if not RECORD_PATH.fullmatch(path):
            continue
        try:
            data = json.loads(files.read_all(path))
        except ValueError:
            continue
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            continue
        one = own.get(path.rpartition("/")[2])
        there = QuantFacts.from_json(data, f"{repo}/{path}")
        if one is None:
            found.append(there)
        else:
            _refuse_other_files(repo, state, one, there)
    return found


def _refuse_other_files(repo: str, state: State, one: QuantFacts, there: QuantFacts) -> None:
    same = {file.path for file in one.files}
    left = [file.path for file in there.files if file.path not in same and file.path in state.files]
    if left:
        raise BadInput(
            f"{repo}/{left[0]}: the repo has {one.name} already, in other files; publish to another repo, or delete "
            "those there first"
        )


def _assign(collection: Collection, reports: Sequence[Path]) -> dict[tuple[Path, ...], list[Path]]:
    """The reports by the model whose weights they are about."""
    mine: dict[tuple[Path, ...], list[Path]] = {model: [] for model in collection.models}
    for path in reports:
        report = read_report(path)
        about = next((model for model in collection.models if report_matches(report, model)), None)
        if about is None:
            raise BadInput(f"{path}: is about none of these models' weights; verify them, or leave the report out")
        mine[about].append(path)
    return mine


def _check_verdict(path: Path, facts: QuantFacts, unverified: bool) -> None:
    if unverified:
        return
    if facts.report is None:
        raise BadInput(
            f"{path}: no report says what it is worth; run `quantkit verify` and give its folder with --report, or say "
            "--unverified, which the card will repeat"
        )
    if facts.report.verdict == FAIL:
        why = facts.report.reasons[0] if facts.report.reasons else "see the report"
        raise BadInput(f"{path}: its report says {FAIL} ({why}); publish it all the same with --unverified")

"""The story of `quantkit publish`: what is there, may it be shown, weights up, one commit, and only then public."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import BadInput, RunFailed
from quantkit.hub.card import RECORDS, QuantFacts, build_card, check_card, license_findings
from quantkit.hub.preflight import check_repo_name, check_sizes, check_token, storage_line
from quantkit.hub.upload.collect import Collection, collect
from quantkit.hub.upload.content import Content, content_of, hash_file
from quantkit.hub.upload.describe import describe, other_records, record
from quantkit.hub.upload.origin import find_licence
from quantkit.hub.upload.push import Push
from quantkit.hub.upload.repository import Repository, State
from quantkit.hub.upload.to_main import CARD, LICENCE, refuse_other

ENDING = ".publish"
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Wanted:
    """What the user asked for."""

    paths: tuple[Path, ...]
    repo: str
    reports: tuple[Path, ...] = ()
    imatrix: Path | None = None
    licence: Path | None = None
    public: bool = False
    tag: str | None = None
    unverified: bool = False


@dataclass(frozen=True)
class Publication:
    """Everything that will be in the repo by its place there, `weights` and `small`, and the lines to say before.

    `present` are the contents of those files that main holds already, `main` the commit that it was at.
    """

    collection: Collection
    facts: tuple[QuantFacts, ...]
    weights: Mapping[str, Path]
    small: Mapping[str, bytes | Path]
    present: Mapping[str, Content]
    card: str
    lines: tuple[str, ...]
    main: str | None

    def sizes(self) -> dict[str, int]:
        """Bytes by place, weights first."""
        return {place: _size(data) for place, data in (*self.weights.items(), *self.small.items())}


@dataclass(frozen=True)
class Published:
    """What `publish` did. `sent_bytes` went up now, `present_bytes` were there, or were sent by an earlier run."""

    url: str
    commit: str
    files: int
    sent_bytes: int
    present_bytes: int


def prepare(wanted: Wanted, *, dry: bool = False, headers_only: bool = False) -> Publication:
    """Read headers, reports, and what the repo holds; refuse what must not or cannot be published.

    Nothing is written, neither here nor on the Hub. A `dry` run needs no token, and goes on without the network. With
    `headers_only` the models have their headers and sizes but not their bytes: who uploaded them has compared them.
    """
    check_repo_name(wanted.repo)
    if wanted.tag is not None and TAG.fullmatch(wanted.tag) is None:
        raise BadInput(f"--tag {wanted.tag!r}: a tag has letters, digits, '.', '_' and '-'")
    collection = collect(wanted.paths, wanted.imatrix)
    lines = check_sizes({place: path.stat().st_size for place, path in collection.weights.items()})
    facts, small = describe(collection, wanted.reports, unverified=wanted.unverified)
    if wanted.imatrix is not None and collection.imatrix is None and not headers_only:
        raise BadInput(f"{wanted.imatrix}: none of these models was made with an importance matrix; leave it out")
    licence = find_licence(collection.models[0][0], wanted.licence, facts[0].source)
    account = {} if dry else check_token(wanted.repo)
    state, unreachable = _look(wanted, dry)
    records = {one.record_name: record(one) for one in facts}
    card = build_card([*other_records(wanted.repo, state, facts), *facts], wanted.repo, licence.read_text())
    findings = check_card(card.text) + license_findings(licence, card=card.text)
    if findings:
        raise BadInput(f"{wanted.repo}: {findings[0]}")
    along: dict[str, bytes | Path] = {**collection.along, **small, **card.pictures}
    along |= {f"{RECORDS}/{name}": content for name, content in records.items()}
    along |= {CARD: card.text.encode(), LICENCE: licence}
    weights = dict(collection.weights)
    if headers_only:
        along |= {place: path for place, path in weights.items() if path == collection.imatrix}
        weights = {}
    present = _present(wanted.repo, state, {**weights, **along})
    lines += unreachable + _storage(wanted, state, collection, account)
    return Publication(collection, tuple(facts), weights, along, present, card.text, tuple(lines), _commit(state))


def publish(wanted: Wanted, publication: Publication, said: Callable[[str], object]) -> Published:
    """Bring a prepared publication to the Hub; `said` gets a line for every weight file that begins to go up.

    Private until everything is on main, checked and tagged. Repeating it after a kill sends nothing twice.
    """
    collection, present = publication.collection, publication.present
    places = {path: place for place, path in publication.weights.items()}
    journal = collection.beside / (collection.name + ENDING)
    with Push(wanted.repo, journal, name=collection.name, identity=ENDING, place=places.__getitem__, keep=True) as push:
        for path, place in places.items():
            if place in present:
                push.present(path, present[place])
            elif not push.held(path):
                said(f"uploading {place}")
                push.take(path, path)
                push.finish()
        push.finish()
        if _commit(push.repository.state()) != publication.main:  # another one's record may have to be on the card now
            publication = prepare(wanted)
        names = ", ".join(one.name for one in publication.facts)
        commit = push.finalize(publication.small, f"Add {names}", tag=wanted.tag, public=wanted.public)
    sizes = publication.sizes()
    sent = push.sent_bytes + sum(sizes[place] for place in publication.small if place not in present)
    return Published(push.repository.url, commit, len(sizes), sent, sum(sizes.values()) - sent)


def _commit(state: State | None) -> str | None:
    return state.commit if state is not None else None


def _look(wanted: Wanted, dry: bool) -> tuple[State | None, list[str]]:
    """Main of the repo, None where there is no repo yet; a line where that cannot be known."""
    repository = Repository(wanted.repo, attempts=1) if dry else Repository(wanted.repo)
    try:
        state = repository.state()
    except RunFailed:
        if not dry:
            raise
        return None, [f"{wanted.repo}: the Hub cannot be reached; what the repo holds is not known"]
    if wanted.tag is not None and state is not None:
        at = repository.tags().get(wanted.tag)
        if at is not None and at != state.commit:
            raise BadInput(f"{wanted.repo}: tag {wanted.tag} names an earlier commit; choose another with --tag")
    return state, []


def _present(repo: str, state: State | None, files: Mapping[str, bytes | Path]) -> dict[str, Content]:
    """Contents of the files that main holds already; a file of other content there is refused."""
    present = {}
    for place, data in files.items():
        there = state.files.get(place) if state is not None else None
        if there is None:
            continue
        if there.size == _size(data):
            content = content_of(data) if isinstance(data, bytes) else hash_file(data)
        else:
            content = Content(_size(data), "", "")  # other content whatever it is
        refuse_other(repo, place, there, content)
        if content.equals(there):
            present[place] = content
    return present


def _storage(wanted: Wanted, state: State | None, collection: Collection, account: Mapping[str, Any]) -> list[str]:
    if state is not None and not state.private:
        return []
    line = storage_line(wanted.repo, sum(path.stat().st_size for path in collection.weights.values()), account)
    return [line] if line is not None else []


def _size(data: bytes | Path) -> int:
    return len(data) if isinstance(data, bytes) else data.stat().st_size

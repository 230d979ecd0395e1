"""Where the files to publish came from: the record of a source on the Hub, and the licence that has to go along."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from quantkit.errors import BadInput, QuantkitError
from quantkit.formats.gguf.read import PART_NAME
from quantkit.hub.card import SourceFacts, license_findings
from quantkit.hub.client import call
from quantkit.hub.repo_files import RemoteFile
from quantkit.hub.upload.content import content_of
from quantkit.hub.upload.repository import MAIN, Repository
from quantkit.hub.upload.to_main import LICENCE

# What a run whose source was on the Hub writes into a checkpoint folder, or beside a GGUF after its name.
RECORD_NAME = "source.json"


def stem(gguf: Path) -> str:
    """The name of a GGUF without the number of its part and its suffix."""
    match = PART_NAME.fullmatch(gguf.name)
    return gguf.stem if match is None else match["prefix"]


def source_of(model: Path) -> SourceFacts | None:
    """The repo and the commit that a checkpoint folder or a GGUF was made from, None where no record says."""
    record = _record(model)
    return None if record is None else SourceFacts(record["repo"], record.get("revision"), record.get("commit"))


def find_licence(model: Path, given: Path | None, source: SourceFacts | None) -> Path:
    """The model's LICENSE: the one `given`, in its folder, or of its source. Refused where it is not the source's."""
    path = given or (model if model.is_dir() else model.parent) / LICENCE
    if given is None and not path.is_file():
        path = _downloaded(source) or path
    findings = license_findings(path)
    if findings:
        raise BadInput(findings[0])
    there = _licence_of_source(model, source)
    if there is not None and not content_of(path.read_bytes()).equals(there):
        name = source.repo if source is not None else "the source"
        raise BadInput(f"{path}: differs from the LICENSE of {name}; give that one with --license")
    return path


def _downloaded(source: SourceFacts | None) -> Path | None:
    """The source's own LICENSE, into the client's cache; None where it is not known or cannot be had."""
    if source is None or source.commit is None:
        return None
    with suppress(QuantkitError):
        name = f"{LICENCE} of {source.repo}"
        return Path(call(name, lambda: hf_hub_download(source.repo, LICENCE, revision=source.commit), attempts=1))
    return None


def _record(model: Path) -> dict[str, Any] | None:
    path = model / RECORD_NAME if model.is_dir() else model.with_name(f"{stem(model)}.{RECORD_NAME}")
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record["repo"], str) and isinstance(record["files"], dict):
            return dict(record)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise BadInput(f"{path}: not a record of a source; restore or delete it")


def _licence_of_source(model: Path, source: SourceFacts | None) -> RemoteFile | None:
    """The LICENSE in the source's repo, as the record lists it, or else as the Hub does."""
    record = _record(model)
    if record is not None:
        listed = record["files"].get(LICENCE)
        return RemoteFile(**listed) if listed is not None else None
    if source is None:
        return None
    # A source that cannot be looked at leaves the text itself, which was recognised.
    with suppress(QuantkitError):
        state = Repository(source.repo, attempts=1).state(source.commit or MAIN)
        return state.files.get(LICENCE) if state is not None else None
    return None

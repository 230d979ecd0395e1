"""What a corpus consists of: a shipped manifest by name, a YAML manifest of one's own, or one file of text or rows.

    name: code
    description: source files of permissively licensed packages
    seed: 20261122
    samples: 256
    sequence_length: 2048
    sources:
      - {name: python, domain: code, share: 100, licence: MIT and others, origin: see the rows,
         packaged: python.jsonl, sha256: …, rows: 120}

A source is `packaged` (a JSONL beside the manifest, its hash and rows are checked), `file` (txt, jsonl or parquet;
relative to the manifest), or `hub` (a dataset id with the `revision` of one commit). Shares are percent of the tokens.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from quantkit.errors import BadInput
from quantkit.yaml_models import read_mapping, validated

FILE_SUFFIXES = (".txt", ".jsonl", ".parquet")
MANIFEST_SUFFIXES = (".yaml", ".yml")
# As llama-imatrix cuts a text by default.
FILE_SEQUENCE_LENGTH = 512

_SHA256 = r"^[0-9a-f]{64}$"
_COMMIT = r"^[0-9a-f]{40}$"
_HUB_ID = r"^[\w.-]+(/[\w.-]+)?$"
_PLAIN_NAME = r"^[\w-][\w.-]*\.jsonl$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Columns(_Strict):
    """Which columns of a data set hold a row's text, or its messages and tools."""

    text: str = "text"
    messages: str = "messages"
    tools: str = "tools"


class Source(_Strict):
    """Where some of a corpus's rows come from, under which licence, and which share of the tokens they shall have."""

    name: Annotated[str, Field(min_length=1)]
    domain: Annotated[str, Field(min_length=1)]
    share: Annotated[float, Field(gt=0, le=100)]
    licence: Annotated[str, Field(min_length=1)]
    origin: Annotated[str, Field(min_length=1)]
    packaged: Annotated[str, Field(pattern=_PLAIN_NAME)] | None = None
    file: Annotated[str, Field(min_length=1)] | None = None
    hub: Annotated[str, Field(pattern=_HUB_ID)] | None = None
    sha256: Annotated[str, Field(pattern=_SHA256)] | None = None
    rows: Annotated[int, Field(gt=0)] | None = None
    revision: Annotated[str, Field(pattern=_COMMIT)] | None = None
    config: str | None = None
    split: str = "train"
    columns: Columns = Columns()

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        places = [self.packaged, self.file, self.hub]
        if sum(place is not None for place in places) != 1:
            raise ValueError("give one of packaged, file and hub")
        if self.packaged is not None and (self.sha256 is None or self.rows is None):
            raise ValueError("a packaged file needs sha256 and rows")
        if self.hub is not None and self.revision is None:
            raise ValueError("a hub data set needs the revision of one commit, 40 hex digits, so that it cannot change")
        if self.hub is None and (self.revision is not None or self.config is not None):
            raise ValueError("revision and config belong to hub data sets")
        if self.file is not None and not self.file.endswith(FILE_SUFFIXES):
            raise ValueError(f"{self.file}: only {', '.join(FILE_SUFFIXES)} files can be read")
        return self


class Manifest(_Strict):
    """A corpus as its YAML file describes it; `samples` times `sequence_length` is how many tokens it gives."""

    name: Annotated[str, Field(min_length=1)]
    description: str
    seed: Annotated[int, Field(ge=0)]
    samples: Annotated[int, Field(ge=1)]
    sequence_length: Annotated[int, Field(ge=2)]
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError("two sources have the same name")
        total = sum(source.share for source in self.sources)
        if abs(total - 100) > 0.01:
            raise ValueError(f"the shares of the sources add up to {total:g}, not 100")
        return self


@dataclass(frozen=True)
class Corpus:
    """A corpus to build: its sources, the folder their paths start from, and the hash of the file that names them.

    A file given directly has no `samples` of its own (all of it is taken) and keeps its order.
    """

    name: str
    description: str
    seed: int
    samples: int | None
    sequence_length: int
    sources: tuple[Source, ...]
    path: Path
    sha256: str
    shuffled: bool

    def path_of(self, source: Source) -> Path:
        """The local file of a packaged or file source."""
        return self.path.parent / (source.packaged or source.file or "")


def data_folder() -> Path:
    """Where the shipped corpora are: inside an installed package, or at the top of a checkout."""
    inside = Path(__file__).resolve().parents[1] / "data"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[3] / "calibration"


def shipped_corpora() -> dict[str, Path]:
    """Names and manifests of the corpora that come with quantkit."""
    return {path.stem: path for path in sorted(data_folder().glob("*.yaml"))}


def find_corpus(name_or_file: str) -> Corpus:
    """The shipped corpus of that name, or the one that a manifest or text, JSONL or parquet file describes.

    Raises BadInput for an unknown name, a missing file, another kind of file, or a manifest that says something else
    than a manifest may.
    """
    shipped = shipped_corpora()
    if name_or_file in shipped:
        return load_manifest(shipped[name_or_file])
    path = Path(name_or_file)
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return load_manifest(path)
    if path.suffix.lower() in FILE_SUFFIXES:
        return single_file(path)
    near = difflib.get_close_matches(name_or_file, shipped, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise BadInput(
        f"unknown calibration corpus {name_or_file!r}; {hint}Shipped: {', '.join(shipped)}; "
        f"or give a file that ends in {', '.join((*MANIFEST_SUFFIXES, *FILE_SUFFIXES))}"
    )


def load_manifest(path: Path) -> Corpus:
    """Read and check a YAML manifest; BadInput with one line that names the file and the field."""
    shape = "a manifest is a mapping with name, seed, samples, sequence_length and sources"
    manifest = validated(Manifest, read_mapping(path, "manifest", shape), str(path))
    fields: dict[str, Any] = {field: getattr(manifest, field) for field in Manifest.model_fields}
    return Corpus(**fields, path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), shuffled=True)


def single_file(path: Path) -> Corpus:
    """A text, JSONL or parquet file as a corpus of its own: all of it, in its order."""
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput(f"{path}: its name is not UTF-8, which provenance needs; rename the file") from None
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"{path}: cannot read the calibration file ({error.strerror})") from error
    source = Source(
        name=path.name, domain="own", share=100.0, licence="unknown", origin=path.name, file=path.name, sha256=sha256
    )
    return Corpus(path.name, "a file of your own", 0, None, FILE_SEQUENCE_LENGTH, (source,), path, sha256, False)

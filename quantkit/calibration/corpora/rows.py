"""Rows of a source, one at a time and by number: JSONL by byte offsets, text files, parquet, Hub data sets.

Every kind of store says how many rows it has and gives row i as a `Row` that knows its place for messages.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from quantkit.calibration.corpora.manifest import Columns, Corpus, Source
from quantkit.errors import BadInput

EXTRA = "pip install 'quantkit[calibration]'"


@dataclass(frozen=True)
class Row:
    """One row as it was read: `value` has the keys text, or messages and tools. `place` is where, for messages."""

    value: dict[str, Any]
    place: str


class Rows(Protocol):
    """The rows of one source."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """Row `index`, counted from 0; BadInput naming file and line when it cannot be read."""
        ...


@dataclass(frozen=True)
class TextFile:
    """A text file is one row."""

    path: Path

    def __len__(self) -> int:
        return 1

    def row(self, index: int) -> Row:
        try:
            # Line ends stay as they are.
            return Row({"text": self.path.read_bytes().decode("utf-8-sig")}, str(self.path))
        except UnicodeDecodeError as error:
            raise BadInput(f"{self.path}: not UTF-8 text: {error}") from error


@dataclass(frozen=True)
class JsonLines:
    """A JSONL file; of its lines only the offsets are kept. Blank lines do not count."""

    path: Path
    columns: Columns
    lines: list[tuple[int, int, int]]  # byte offset, bytes, line number from 1

    def __len__(self) -> int:
        return len(self.lines)

    def row(self, index: int) -> Row:
        offset, length, number = self.lines[index]
        place = f"{self.path}:{number}"
        with self.path.open("rb") as file:
            file.seek(offset)
            raw = file.read(length)
        try:
            value = json.loads(raw.decode("utf-8-sig" if offset == 0 else "utf-8"))
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{place}: not JSON: {error}; every line has to be one JSON object") from error
        if isinstance(value, dict):
            value = {key: item for key, item in value.items() if item is not None}
        return Row(_renamed(value, self.columns), place)


@dataclass(frozen=True)
class Table:
    """A parquet file (as pyarrow's table), or a Hub data set.

    Both store every row with the same keys, so a missing key comes back as a null: nulls are taken as missing.
    """

    name: str
    columns: Columns
    data: Any
    parquet: bool

    def __len__(self) -> int:
        return len(self.data)

    def row(self, index: int) -> Row:
        value = self.data.slice(index, 1).to_pylist()[0] if self.parquet else self.data[index]
        return Row(_renamed(_without_nulls(value), self.columns), f"{self.name}:{index + 1}")


def open_rows(corpus: Corpus, source: Source) -> tuple[Rows, str]:
    """The rows of a source and the sha256 of its file, or the revision of a Hub data set.

    Raises BadInput when the file is missing, empty or not the one of the manifest, or the data set cannot be had.
    """
    if source.hub is not None:
        return _open_hub(source), source.revision or ""
    path = corpus.path_of(source)
    try:
        lines, sha256 = _scan(path)
    except OSError as error:
        raise BadInput(f"{path}: cannot read the calibration file ({error.strerror})") from error
    if source.sha256 not in (None, sha256):
        raise BadInput(f"{path}: sha256 is {sha256} but {corpus.path.name} states {source.sha256}; restore the file")
    if not lines:
        raise BadInput(f"{path}: holds no text; a corpus needs at least one row")
    if path.suffix.lower() == ".jsonl":
        rows: Rows = JsonLines(path, source.columns, lines)
    else:
        rows = TextFile(path) if path.suffix.lower() == ".txt" else _open_parquet(path, source.columns)
    if source.rows not in (None, len(rows)):
        raise BadInput(f"{path}: has {len(rows)} rows but {corpus.path.name} states {source.rows}; restore the file")
    return rows, sha256


def _scan(path: Path) -> tuple[list[tuple[int, int, int]], str]:
    """Offsets of the lines that are not blank, and the hash of the file, in one pass."""
    digest = hashlib.sha256()
    lines = []
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            digest.update(line)
            if line.strip():
                lines.append((offset, len(line), number))
            offset += len(line)
    return lines, digest.hexdigest()


def _renamed(value: Any, columns: Columns) -> dict[str, Any]:
    """The row under the names that the rest of the program knows; what is no object has none of them."""
    if not isinstance(value, dict):
        return {}
    names = {"text": columns.text, "messages": columns.messages, "tools": columns.tools}
    return {ours: value[theirs] for ours, theirs in names.items() if theirs in value}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _optional(package: str, what: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise BadInput(f"{what} needs the package {package.partition('.')[0]}; {EXTRA}") from error


def _open_parquet(path: Path, columns: Columns) -> Table:
    parquet = _optional("pyarrow.parquet", f"{path}: reading parquet")
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise BadInput(f"{path}: not a readable parquet file: {' '.join(str(error).split())}") from error
    if not len(table):
        raise BadInput(f"{path}: holds no text; a corpus needs at least one row")
    return Table(str(path), columns, table, parquet=True)


def _open_hub(source: Source) -> Table:
    datasets = _optional("datasets", f"{source.hub}: reading a Hub data set")
    try:
        data = datasets.load_dataset(source.hub, source.config, split=source.split, revision=source.revision)
    except Exception as error:  # whatever the network, the Hub, the data set's files or its settings raise
        raise BadInput(
            f"{source.hub}: cannot load revision {source.revision} ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}); check id, config and split, or go online once"
        ) from error
    if not len(data):
        raise BadInput(f"{source.hub}: split {source.split} holds no rows")
    if source.rows not in (None, len(data)):
        raise BadInput(f"{source.hub}: has {len(data)} rows but the manifest states {source.rows}")
    return Table(f"{source.hub}/{source.split}", source.columns, data, parquet=False)

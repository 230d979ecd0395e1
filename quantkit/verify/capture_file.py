"""A capture: what one model said to all texts and requests, in one SQLite file that is also the journal of its making.

Tables: `about` (key TEXT, value JSON), `scores` (run, passage, three arrays as safetensors), `answers` (run, loop,
request, step, JSON of an Answer). While it grows it is FILE.partial; a finished item is there for good, so a killed
capture goes on where it was. `run` tells the model's own figures ("first") from its noise ("again").
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from numpy.typing import NDArray

from quantkit.errors import BadInput, QuantkitError
from quantkit.files import cannot_write, partial_path
from quantkit.verify.records import Answer, Call, Scores

MAGIC = "quantkit capture 1"
FIRST, AGAIN = "first", "again"

_TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE scores (run TEXT, passage INTEGER, arrays BLOB NOT NULL, PRIMARY KEY (run, passage));
CREATE TABLE answers (run TEXT, loop INTEGER, request TEXT, step INTEGER, answer TEXT NOT NULL,
                      PRIMARY KEY (run, loop, request, step));
"""
# The greedy regime is loop 0, sampling loops count from 1.
GREEDY = 0


class Capture:
    """An open capture; used by many threads.

    `about` holds identity, versions and questions as JSON; `id` is another one for every capture.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock_file: IO[bytes] | None = None) -> None:
        """`lock_file` keeps other runs out as long as it is open."""
        self.path = path
        self._connection = connection
        self._lock_file = lock_file
        self._lock = threading.Lock()

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was put is on disk."""
        self._connection.close()
        if self._lock_file is not None:
            self._lock_file.close()

    def about(self, key: str) -> Any:
        """The JSON value stored as `key`, None where there is none."""
        rows = self._rows("SELECT value FROM about WHERE key = ?", key)
        return json.loads(rows[0][0]) if rows else None

    def set_about(self, key: str, value: Any) -> None:
        """Store a JSON value; an earlier one is replaced."""
        self._put("INSERT OR REPLACE INTO about VALUES (?, ?)", key, json.dumps(value))

    def scores(self, run: str, passage: int) -> Scores | None:
        """The scores of a passage, None where it was not scored."""
        from safetensors.numpy import load

        rows = self._rows("SELECT arrays FROM scores WHERE run = ? AND passage = ?", run, passage)
        if not rows:
            return None
        arrays = load(rows[0][0])
        return Scores(arrays["actual"], arrays["top_ids"], arrays["top"])

    def put_scores(self, run: str, passage: int, scores: Scores) -> None:
        """Keep the scores of a passage."""
        from safetensors.numpy import save

        arrays: dict[str, NDArray[Any]] = {"actual": scores.actual, "top_ids": scores.top_ids, "top": scores.top}
        self._put("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", run, passage, save(arrays))

    def scored_passages(self, run: str) -> list[int]:
        """Numbers of the passages that have scores, ascending."""
        return [row[0] for row in self._rows("SELECT passage FROM scores WHERE run = ? ORDER BY passage", run)]

    def answer(self, run: str, loop: int, request: str, step: int = 0) -> Answer | None:
        """The answer to a step of a request, None where it was not asked; an `error` counts as not answered."""
        rows = self._rows(
            "SELECT answer FROM answers WHERE run = ? AND loop = ? AND request = ? AND step = ?",
            run,
            loop,
            request,
            step,
        )
        return _answer(json.loads(rows[0][0])) if rows else None

    def put_answer(self, run: str, loop: int, request: str, step: int, answer: Answer) -> None:
        """Keep the answer to a step of a request; an earlier one is replaced."""
        text = json.dumps(asdict(answer))  # in ASCII: models may give half of a surrogate pair
        self._put("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", run, loop, request, step, text)

    def answers(self, run: str) -> Iterator[tuple[int, str, int, Answer]]:
        """Yield (loop, request, step, answer) in this order of a run."""
        query = "SELECT loop, request, step, answer FROM answers WHERE run = ? ORDER BY loop, request, step"
        for loop, request, step, text in self._rows(query, run):
            yield loop, request, step, _answer(json.loads(text))

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def _put(self, query: str, *values: Any) -> None:
        try:
            with self._lock, self._connection:
                self._connection.execute(query, values)
        except sqlite3.Error as error:
            raise QuantkitError(
                f"{self.path}: cannot be written ({error}); mend that and repeat the same command"
            ) from None


def _answer(fields: dict[str, Any]) -> Answer:
    streamed = fields.pop("streamed")
    calls = tuple(Call(**call) for call in fields.pop("calls"))
    return Answer(**fields, calls=calls, streamed=_answer(streamed) if streamed else None)


def begin_capture(path: Path, identity: dict[str, Any], *, force: bool = False) -> Capture:
    """Open FILE.partial for a capture of `identity`, new or to go on with; `finish_capture` gives it its name.

    Raises BadInput when FILE exists, or was begun for something else, unless `force` is given.
    """
    if path.exists() and not force:
        raise BadInput(f"{path}: exists already; give another -o, or --force to replace it")
    aside = partial_path(path)
    identity = json.loads(json.dumps(identity))
    if aside.exists() and _identity(aside) != identity and (force or not _has_answers(aside)):
        aside.unlink()
    lock_file = _locked(path)
    begun = aside.stat().st_size > 0
    try:
        if begun and _identity(aside) != identity:
            raise BadInput(
                f"{aside}: was begun with another model or other arguments; give those, or --force to start over"
            )
        connection = sqlite3.connect(aside, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = DELETE")
        if not begun:
            connection.executescript(_TABLES)
    except BadInput:
        lock_file.close()
        raise
    except (sqlite3.Error, OSError) as error:
        lock_file.close()
        raise cannot_write(path, OSError(0, str(error))) from None
    capture = Capture(path, connection, lock_file)
    if not begun:
        capture.set_about("format", MAGIC)
        capture.set_about("identity", identity)
        capture.set_about("id", uuid.uuid4().hex)
    return capture


def _locked(path: Path) -> IO[bytes]:
    """Open the unfinished file for `path` and keep other runs out; BadInput where one is at it."""
    aside = partial_path(path)
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        file = aside.open("ab")
    except OSError as error:
        raise cannot_write(path, error) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise BadInput(f"{aside}: another run is writing it; wait for that, or give another -o") from None
    return file


def finish_capture(capture: Capture) -> None:
    """Close a capture that has everything and give it its final name."""
    capture.close()
    partial_path(capture.path).replace(capture.path)


def is_finished(path: Path, identity: dict[str, Any]) -> bool:
    """Whether a finished capture of just this is there already."""
    return is_capture(path) and _identity(path) == json.loads(json.dumps(identity))


def open_capture(path: Path) -> Capture:
    """Open a finished capture to read. Raises BadInput for anything else."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file; `quantkit verify capture MODEL -o FILE` makes one")
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
        capture = Capture(path, connection)
        if capture.about("format") == MAGIC:
            return capture
    except (sqlite3.Error, ValueError):
        pass
    raise BadInput(f"{path}: not a capture of this version; `quantkit verify capture MODEL -o FILE` makes one")


def is_capture(path: Path) -> bool:
    """Whether a file begins like one."""
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError:
        return False


def _has_answers(path: Path) -> bool:
    """Whether an unfinished capture holds anything that was asked for; what is no capture counts as if it did."""
    try:
        with Capture(path, sqlite3.connect(path)) as capture:
            return bool(capture._rows("SELECT 1 FROM scores UNION ALL SELECT 1 FROM answers LIMIT 1"))
    except sqlite3.Error:
        return True


def _identity(path: Path) -> Any:
    try:
        with Capture(path, sqlite3.connect(path)) as capture:
            return capture.about("identity")
    except (sqlite3.Error, ValueError):
        return None

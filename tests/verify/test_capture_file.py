"""A capture is a journal: what was put is there after a kill, and only the same questions go on with it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantkit.errors import BadInput
from quantkit.files import partial_path
from quantkit.verify.capture_file import (
    AGAIN,
    FIRST,
    begin_capture,
    finish_capture,
    is_capture,
    is_finished,
    open_capture,
)
from quantkit.verify.records import Answer, Call, Scores

IDENTITY = {"model": "x", "questions": "y"}
ANSWER = Answer(
    "tool_calls", "", "half a pair \ud83d", (Call("f", '{"a": "ü"}'),), raw="<think>", streamed=Answer("stop", "b")
)
SCORES = Scores(
    np.array([-1.5, np.nan]), np.array([[3, 1], [0, 2]], np.int32), np.array([[-0.5, -1], [-1, -2]], np.float32)
)


def test_everything_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.capture"
    with begin_capture(path, IDENTITY) as capture:
        capture.set_about("texts", {"ü": [1, 2.5, None]})
        capture.put_scores(FIRST, 7, SCORES)
        capture.put_answer(FIRST, 1, "r", 0, ANSWER)
        capture.put_answer(FIRST, 0, "r", 1, Answer(error="late"))
        assert not path.exists()
        finish_capture(capture)
    assert not partial_path(path).exists()
    with open_capture(path) as capture:
        assert capture.about("texts") == {"ü": [1, 2.5, None]}
        assert capture.about("nothing") is None
        found = capture.scores(FIRST, 7)
        assert found is not None
        for mine, theirs in zip(
            (SCORES.actual, SCORES.top_ids, SCORES.top), (found.actual, found.top_ids, found.top), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)
        assert capture.scores(AGAIN, 7) is None
        assert capture.scored_passages(FIRST) == [7]
        assert list(capture.answers(FIRST)) == [(0, "r", 1, Answer(error="late")), (1, "r", 0, ANSWER)]
    assert is_finished(path, IDENTITY)
    assert not is_finished(path, IDENTITY | {"model": "z"})


def test_what_was_put_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "a.capture"
    program = (
        "import os, sys; from pathlib import Path; from quantkit.verify.capture_file import *;"
        "from quantkit.verify.records import Answer;"
        f"c = begin_capture(Path({str(path)!r}), {IDENTITY!r});"
        "[c.put_answer('first', 0, str(n), 0, Answer(content=str(n))) for n in range(50)];"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    with begin_capture(path, IDENTITY) as capture:
        assert len(list(capture.answers(FIRST))) == 50


def test_others_do_not_go_on_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.capture"
    begin_capture(path, IDENTITY | {"model": "mistyped"}).close()  # nothing was asked: no reason to keep it
    with begin_capture(path, IDENTITY) as capture:
        capture.put_answer(FIRST, 0, "r", 0, Answer("stop"))
        with pytest.raises(BadInput, match="another run is writing it"):
            begin_capture(path, IDENTITY)
    with pytest.raises(BadInput, match="was begun with another model"):
        begin_capture(path, IDENTITY | {"model": "z"})
    with begin_capture(path, IDENTITY | {"model": "z"}, force=True) as capture:
        finish_capture(capture)
    with pytest.raises(BadInput, match="exists already"):
        begin_capture(path, IDENTITY)


def test_what_is_no_capture(tmp_path: Path) -> None:
    text, database = tmp_path / "text", tmp_path / "database"
    text.write_text("x" * 100)
    sqlite3.connect(database).execute("CREATE TABLE t (a)")
    for path in (text, database, tmp_path / "missing", tmp_path):
        with pytest.raises(BadInput, match=str(path)):
            open_capture(path)
    assert not is_capture(text)
    assert not is_capture(tmp_path)

"""The journal's promise: what it lists was on disk before, and nobody who records an item waits for the disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantkit.errors import QuantkitError
from quantkit.run import journal as journals
from quantkit.run.journal import Journal, RunIdentity

IDENTITY = RunIdentity("arguments", {"shard": "mark"}, "a run")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "SYNC_SECONDS", 0.01)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "m.journal", IDENTITY, restart=False)
    yield opened
    opened.close()


def listed(journal: Journal) -> list[str]:
    return journal.path.read_text().splitlines()[1:]


def test_items_are_listed_after_their_bytes_are_on_disk(journal: Journal) -> None:
    on_disk: set[str] = set()
    written: list[int] = []

    def sync() -> None:
        assert set(listed(journal)) <= on_disk
        on_disk.update(map(str, list(written)))

    with journal.kept_on_disk(sync):
        for number in range(300):
            written.append(number)
            journal.record(number)
            assert set(listed(journal)) <= on_disk
    assert listed(journal) == [str(number) for number in range(300)]


def test_recording_does_not_wait_for_a_slow_disk(journal: Journal) -> None:
    syncing, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        syncing.set()
        assert go_on.wait(60)

    with journal.kept_on_disk(slow):
        journal.record(0)
        assert syncing.wait(60)
        for number in range(1, 100):
            journal.record(number)
        assert listed(journal) == []
        go_on.set()
    assert listed(journal) == [str(number) for number in range(100)]


def test_flushing_waits_for_what_is_under_way(journal: Journal) -> None:
    syncing, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        syncing.set()
        assert go_on.wait(60)

    with journal.kept_on_disk(slow):
        journal.record(7)
        assert syncing.wait(60)
        threading.Timer(0.1, go_on.set).start()
        journal.flush(lambda: None)
        assert listed(journal) == ["7"]


def test_lost_bytes_end_the_run_and_are_not_listed(journal: Journal) -> None:
    failed = threading.Event()

    def lose() -> None:
        if not failed.is_set():  # systems tell it once
            failed.set()
            raise OSError("lost")

    def work() -> None:
        journal.record(0)
        assert failed.wait(60)
        while True:
            journal.record(1)

    with pytest.raises(OSError, match="lost"), journal.kept_on_disk(lose):
        work()
    assert listed(journal) == []
    assert not journal.complete


def test_a_failed_flush_is_final(journal: Journal) -> None:
    """The system tells of lost bytes once: items recorded meanwhile were under the same failure."""

    def lost() -> None:
        journal.record(2)
        raise OSError(5, "Input/output error")

    journal.record(1)
    for sync in (lost, lambda: None):
        with pytest.raises(OSError, match="Input/output"):
            journal.flush(sync)
    assert "2" not in listed(journal)


def test_a_disk_that_takes_a_part_joins_no_lines(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, text: write(file, text[:1]))
    journal.record(123)
    journal.flush(lambda: None)
    full = [True]

    def fills_up(file: int, text: bytes) -> int:
        if full.pop():
            full.append(False)
            return write(file, text[:1])
        full.append(False)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", fills_up)
    journal.record(45)
    with pytest.raises(QuantkitError, match=r"m\.journal: cannot be written \(No space"):
        journal.flush(lambda: None)
    assert journal.path.read_bytes().endswith(b"\n123\n")

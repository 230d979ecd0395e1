"""Runs that are killed at any moment and started again: same repo in the end, nothing uploaded twice."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

from hub_standin import Fault, TestHub
from push_harness import REPO, push, refused, start, uploads, wanted

KILLS = 10


def kill_after(lfs_hub: TestHub, folder: Path, requests: int, delay: float, **options: object) -> bool:
    """Start a run, kill it once it made so many requests; False if it ended before."""
    first = len(lfs_hub.log)
    process = start(lfs_hub, folder, **options)
    while process.poll() is None and len(lfs_hub.log) < first + requests:
        time.sleep(0.001)
    time.sleep(delay)
    ended = process.poll() is not None
    process.kill()
    process.communicate()
    return not ended


def test_killed_at_random_moments_ends_in_the_same_repo(lfs_hub: TestHub, tmp_path: Path) -> None:
    moments = random.Random(1)
    for _ in range(KILLS):
        if not kill_after(lfs_hub, tmp_path, moments.randint(3, 24), moments.uniform(0, 0.02), public=True, tag="v1"):
            break
    else:
        push(tmp_path, public=True, tag="v1")
    assert lfs_hub.files(REPO) == wanted()
    assert max(Counter(uploads(lfs_hub)).values()) == 1
    assert all(files == wanted() for files in lfs_hub.public_files(REPO))
    assert lfs_hub.repos[REPO].tags.keys() == {"v1"}
    assert not lfs_hub.repos[REPO].private
    assert list(lfs_hub.repos[REPO].branches) == ["main"]


def test_killed_inside_of_the_last_steps(lfs_hub: TestHub, tmp_path: Path) -> None:
    """Every request of the last steps is the last one that a run makes."""
    refused(tmp_path, 1, stop_before="finalize")
    done, requests = False, 1
    while not done:
        done = not kill_after(lfs_hub, tmp_path, 5 + requests, 0.0, public=True, tag="v1")
        assert all(files == wanted() for files in lfs_hub.public_files(REPO))
        requests += 1
        assert requests < 60
    assert lfs_hub.files(REPO) == wanted()
    assert max(Counter(uploads(lfs_hub)).values()) == 1
    assert lfs_hub.repos[REPO].tags.keys() == {"v1"}


def test_committed_but_not_journaled_is_recognised(lfs_hub: TestHub, tmp_path: Path) -> None:
    refused(tmp_path, 1, stop_before="finalize")
    journal = tmp_path / "M.push"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]) + lines[-1][:20])  # killed while the last line was written
    result = push(tmp_path)
    assert len(result["made"]) == 1
    assert result["sent"] == 0
    assert max(Counter(uploads(lfs_hub)).values()) == 1
    assert lfs_hub.files(REPO) == wanted()


def test_journal_is_not_believed_where_the_repo_lacks_the_file(lfs_hub: TestHub, tmp_path: Path) -> None:
    refused(tmp_path, 1, stop_before="finalize")
    repo = lfs_hub.repos[REPO]
    (staging,) = set(repo.branches) - {"main"}
    tree = dict(repo.at(staging).tree)
    lost = next(path for path in tree if path.endswith(".gguf"))
    del tree[lost]
    repo.add_commit(staging, tree, "somebody deletes a file")
    assert push(tmp_path)["made"] == [lost.rpartition("/")[2]]
    assert lfs_hub.files(REPO) == wanted()


def test_journal_of_another_run_is_refused(lfs_hub: TestHub, tmp_path: Path) -> None:
    refused(tmp_path, 1, stop_before="finalize")
    message = refused(tmp_path, identity="other arguments")
    assert "M.push" in message
    assert REPO in message
    first = json.loads((tmp_path / "M.push").read_text().splitlines()[0])
    assert first == {"repo": REPO, "name": "M-Q4_K_M.gguf", "identity": "same"}


def test_journal_of_another_run_that_sent_nothing_is_in_nobodys_way(lfs_hub: TestHub, tmp_path: Path) -> None:
    (tmp_path / "M.push").write_text(json.dumps({"repo": "me/Typo", "name": "M-Q4_K_M.gguf", "identity": "x"}) + "\n")
    push(tmp_path)
    assert lfs_hub.files(REPO) == wanted()
    assert not (tmp_path / "M.push").exists()


def test_second_run_on_the_same_journal_is_refused(lfs_hub: TestHub, tmp_path: Path) -> None:
    process = start(lfs_hub, tmp_path, pause=60)
    while not (tmp_path / "M.push").exists():
        time.sleep(0.01)
    assert "another run" in refused(tmp_path)
    process.kill()
    process.communicate()


def test_interrupted_by_the_user(lfs_hub: TestHub, tmp_path: Path) -> None:
    lfs_hub.fail(Fault("PUT /lfs/", "stall", times=1, seconds=60))
    process = start(lfs_hub, tmp_path)
    while not lfs_hub.requests("^PUT /lfs/"):
        time.sleep(0.01)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    lfs_hub.faults.clear()
    push(tmp_path)
    assert lfs_hub.files(REPO) == wanted()

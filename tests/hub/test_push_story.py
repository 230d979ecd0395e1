"""A run's files go up while others are made, and main shows all of them at once."""

from __future__ import annotations

from pathlib import Path

from hub_standin import TestHub
from push_harness import COUNT, REPO, SIZE, push, start, uploads, wanted


def test_pushed_bytes_are_in_the_repo_and_nowhere_else(either_hub: TestHub, tmp_path: Path) -> None:
    result = push(tmp_path, tag="v1")
    assert either_hub.files(REPO) == wanted()
    assert result["sent"] == COUNT * SIZE
    assert result["most"] <= 2
    assert list(tmp_path.iterdir()) == []  # neither files nor journal
    repo = either_hub.repos[REPO]
    assert list(repo.branches) == ["main"]
    assert repo.private
    assert repo.tags == {"v1": result["commit"]}


def test_main_gets_everything_in_one_commit(lfs_hub: TestHub, tmp_path: Path) -> None:
    push(tmp_path, public=True)
    assert lfs_hub.public_files(REPO) == [wanted()]
    assert [set(moment.files) - {".gitattributes"} for moment in lfs_hub.history(REPO)] == [
        set(),
        set(wanted()),
        set(wanted()),
    ]
    assert sorted(uploads(lfs_hub)) == sorted(sha for path, sha in wanted().items() if path.endswith(".gguf"))


def test_room_for_two_files_at_most(lfs_hub: TestHub, tmp_path: Path) -> None:
    from hub_standin import Fault

    lfs_hub.fail(Fault(match="PUT /lfs/", kind="slow", times=100, bytes_per_second=1_000_000))
    assert push(tmp_path, count=6)["most"] == 2
    assert lfs_hub.files(REPO) == wanted(6)


def test_nothing_is_printed(lfs_hub: TestHub, tmp_path: Path) -> None:
    out, err = start(lfs_hub, tmp_path).communicate(timeout=120)
    assert err == ""
    assert len(out.splitlines()) == 1

"""What goes wrong on the Hub's side is tried again or said in one line; main is never half-done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hub_standin import Fault, TestHub
from push_harness import REPO, push, refused, uploads, wanted

UPLOAD, COMMIT = r"PUT /lfs/", r"POST /api/models/.*/commit/"
# Those of one group hit one run: the client and `call` wait between attempts.
PASSING = {
    "bodies": [Fault(UPLOAD, "cut", after_bytes=100_000), Fault(UPLOAD, "lost"), Fault(UPLOAD, "429", retry_after=0.1)],
    "errors": [
        Fault(UPLOAD, "500"),
        Fault("POST .*/preupload/", "502"),
        Fault("POST .*/objects/batch", "500"),
        Fault("GET .*/tree/", "504"),
        Fault(COMMIT, "503", times=2),
        Fault(COMMIT + "main", "500"),
    ],
    "lost answers": [
        Fault("POST /api/repos/create", "lost"),
        Fault("POST .*/branch/", "lost"),
        Fault(COMMIT, "lost", times=2),
        Fault(COMMIT + "main", "lost"),
        Fault("DELETE .*/branch/", "lost"),
        Fault("POST .*/tag/", "lost"),
        Fault("PUT .*/settings", "lost"),
    ],
}
FINAL = [
    (Fault("GET /api/whoami", "401", times=99), "HF_TOKEN"),
    (Fault(UPLOAD, "403", times=99), "token"),
    (Fault(COMMIT, "403", times=99), "token"),
    (Fault(".*/objects/batch|/commit/", "quota", times=99), "storage"),
    (Fault("POST .*/validate-yaml", "400", times=99), "README.md"),
]


def fresh(fault: Fault) -> Fault:
    """The same fault, not met yet."""
    return replace(fault)


@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING)
def test_what_passes_is_tried_again(lfs_hub: TestHub, tmp_path: Path, faults: list[Fault]) -> None:
    faults = [fresh(fault) for fault in faults]
    lfs_hub.fail(*faults)
    push(tmp_path, count=3, public=True, tag="v1")
    assert all(fault.seen == fault.times for fault in faults)
    assert lfs_hub.files(REPO) == wanted(3)
    assert all(files == wanted(3) for files in lfs_hub.public_files(REPO))
    assert len(uploads(lfs_hub)) == 3
    assert lfs_hub.repos[REPO].tags.keys() == {"v1"}
    assert not lfs_hub.repos[REPO].private


@pytest.mark.parametrize(("fault", "said"), FINAL, ids=lambda one: getattr(one, "match", one))
def test_what_does_not_pass_is_said_in_one_line(lfs_hub: TestHub, tmp_path: Path, fault: Fault, said: str) -> None:
    lfs_hub.fail(fresh(fault))
    message = refused(tmp_path, count=2, public=True)
    assert said in message
    assert REPO in message
    assert lfs_hub.write_token not in message
    assert REPO not in lfs_hub.repos or lfs_hub.public_files(REPO) == []
    lfs_hub.faults.clear()
    push(tmp_path, count=2, public=True)
    assert lfs_hub.files(REPO) == wanted(2)


def test_network_that_stays_away_ends_with_a_hint(lfs_hub: TestHub, tmp_path: Path) -> None:
    lfs_hub.fail(Fault(COMMIT, "503", times=999))
    assert "repeat the command" in refused(tmp_path, 1, count=2)
    lfs_hub.faults.clear()
    push(tmp_path, count=2)
    assert lfs_hub.files(REPO) == wanted(2)


def test_wrong_checksum_in_the_tree_stops_before_deletion(lfs_hub: TestHub, tmp_path: Path) -> None:
    lfs_hub.fail(Fault("POST .*/paths-info/", "checksum", times=99))
    message = refused(tmp_path, 1, count=2)
    assert "sha256" in message
    assert list(tmp_path.glob("*.partial"))
    assert lfs_hub.files(REPO) == {}
    lfs_hub.faults.clear()
    push(tmp_path, count=2)
    assert lfs_hub.files(REPO) == wanted(2)


def test_somebody_commits_to_main_meanwhile(lfs_hub: TestHub, tmp_path: Path) -> None:
    refused(tmp_path, 1, stop_before="finalize", count=2)
    lfs_hub.fail(Fault(COMMIT + "main", "412"))
    push(tmp_path, count=2)
    assert lfs_hub.files(REPO) == wanted(2)

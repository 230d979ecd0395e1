"""Trouble with the Hub in the middle of a run: it passes, or one line says what to do; a repo shows all or nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import CliResult
from hub_runs import CARD, LICENCE, SOURCE, Desk, files_below, trouble
from hub_standin import Fault

GGUF = ("gguf", "q4_k_m", "--split-max-size", "600K")
CASES = {"gguf": GGUF, "rtn": ("rtn",)}
SHARD = rf"^GET .*{SOURCE}/resolve/.*\.safetensors$"
CONTENT = r"^GET /content/"
PUT, BATCH, COMMIT = r"^PUT /lfs/me/", r"^POST /me/.*objects/batch", r"^POST /api/models/me/.*/commit/"
TREE = r"^(GET .*/tree/|POST .*/paths-info/)"

# Trouble that passes: faults, and knobs of the stand-in.
PASSING: dict[str, tuple[list[Fault], dict[str, Any]]] = {
    "download": (
        [
            Fault(SHARD, "500", times=2, skip=9),
            Fault(SHARD, "cut", times=2, after_bytes=100_000, skip=2),
            Fault(SHARD, "corrupt", after_bytes=200_000, skip=3),
            Fault(TREE, "429", times=1, retry_after=1),
        ],
        {},
    ),
    "upload": (
        [
            Fault(PUT, "500"),
            Fault(PUT, "cut", after_bytes=50_000, skip=1),
            Fault(BATCH, "503", skip=1),
            Fault(COMMIT, "502"),
            Fault(COMMIT, "lost", skip=1),
            Fault(COMMIT, "429", retry_after=1, skip=2),
        ],
        {},
    ),
    "links": ([Fault(CONTENT, "expired", times=4, skip=3)], {"sign_links": 0.3}),
}
# Trouble that does not: faults, knobs, exit code, and words of the one line.
ENDING: dict[str, tuple[list[Fault], dict[str, Any], int, tuple[str, ...]]] = {
    "quota": ([], {"private_limit": 1_000_000}, 2, ("storage", "plan")),
    "token expires": ([Fault(BATCH, "401", times=99, skip=1)], {}, 2, ("HF_TOKEN",)),
    "no right to commit": ([Fault(rf"{COMMIT}main", "403", times=99)], {}, 2, ("token",)),
    "no right to read": ([Fault(SHARD, "403", times=99, skip=12)], {}, 2, (SOURCE, "token")),
    "corrupt upload": ([Fault(PUT, "corrupt", times=99)], {}, 2, ("not valid",)),
    # Everything is converted by then, and only this one is left.
    "last file is corrupt": ([Fault(PUT, "corrupt", times=99, skip=3)], {}, 2, ("not valid",)),
    "commit fails": ([Fault(rf"{COMMIT}main", "500", times=99)], {}, 1, ("repeat the command",)),
    "other checksums": ([Fault(r"POST .*/me/.*/paths-info/", "checksum", times=99)], {}, 1, ("repeat the command",)),
    "shards are corrupt": ([Fault(SHARD, "corrupt", times=999, after_bytes=9000)], {}, 1, ("repeat the command",)),
}


def assert_no_secret(desk: Desk, folder: Path, result: CliResult, repo: str) -> None:
    """Neither streams, nor files left, nor the repo's small files hold a token or a signature."""
    left = [path.read_bytes() for root in (folder, desk.hub.home) for path in files_below(root)]
    said = [result.out.encode(), result.err.encode()]
    if repo in desk.hub.repos:
        small = (path for path in desk.hub.files(repo) if not path.endswith((".gguf", ".safetensors")))
        said += [desk.hub.read(repo, path) for path in small]
    for secret in (desk.hub.write_token, "Signature=", "X-Amz-"):
        assert all(secret.encode() not in content for content in left + said), secret


@pytest.mark.parametrize("kind", PASSING)
@pytest.mark.parametrize("case", ["gguf", pytest.param("rtn", marks=pytest.mark.full)])
def test_passing_trouble_is_not_noticed(case: str, kind: str, desk: Desk, tmp_path: Path) -> None:
    faults, knobs = PASSING[kind]
    repo = f"me/passing-{case}-{kind}"
    desk.forget()
    with trouble(desk.hub, *map(again, faults), **knobs):
        result = desk.runs.done(tmp_path, *CASES[case], "--push", repo, "--cache-size", "2M", "--public")
        met = [line.fault for line in desk.hub.log if line.fault]
    assert met
    assert desk.pushed(repo) == desk.expected(*CASES[case])
    assert len(desk.hub.public_files(repo)) == 1
    assert desk.uploaded_again(repo) == []
    assert len(result.err.splitlines()) <= 3
    assert_no_secret(desk, tmp_path, result, repo)


@pytest.mark.parametrize("kind", ENDING)
@pytest.mark.parametrize("case", ["gguf", pytest.param("rtn", marks=pytest.mark.full)])
def test_lasting_trouble_is_one_line_and_nothing_is_shown(case: str, kind: str, desk: Desk, tmp_path: Path) -> None:
    faults, knobs, code, words = ENDING[kind]
    repo = f"me/ending-{case}-{kind.replace(' ', '-')}"
    arguments = (*CASES[case], "--push", repo, "--cache-size", "2M", "--public")
    desk.forget()
    with trouble(desk.hub, *map(again, faults), **knobs):
        result = desk.runs(tmp_path, *arguments)
    assert result.code == code, result.err
    (line,) = [line for line in result.err.splitlines() if line.startswith("quantkit: error: ")]
    assert all(word in line for word in words), line
    assert "Traceback" not in result.err
    assert_no_secret(desk, tmp_path, result, repo)
    if repo in desk.hub.repos:
        assert desk.hub.repos[repo].private
        assert desk.hub.files(repo) == {}

    desk.runs.done(tmp_path, *arguments)
    assert desk.pushed(repo) == desk.expected(*CASES[case])
    assert [{CARD, LICENCE} <= files.keys() for files in desk.hub.public_files(repo)] == [True]
    assert desk.uploaded_again(repo) == []


def again(fault: Fault) -> Fault:
    """A fault that was not met yet: tests share those of the tables."""
    return replace(fault)

"""Runs from the Hub to the Hub that are killed at any moment and repeated: the same repo, and nothing goes up twice."""

from __future__ import annotations

import random
import time
from itertools import count
from pathlib import Path

import pytest
from hub_runs import SOURCE, Desk, after_requests, files_below

TEXT = ("--samples", "24", "--sequence-length", "64", "--min-tokens-per-expert", "32")
CASES = {
    "gguf": ("gguf", "q4_k_m", "--split-max-size", "600K"),
    "rtn": ("rtn",),
    "gptq": ("gptq", *TEXT),
    "compensate": ("gguf", "q4_k_m", "--split-max-size", "600K", "--compensate", *TEXT),
}
MOST_REQUESTS = 90  # of a run that nobody kills, about
KILLED = -9


def killed_often(desk: Desk, folder: Path, case: str, kills: int) -> None:
    """Convert again and again, killing runs, until so many were killed; look at every repo that came of it."""
    moments = random.Random(case)
    done = 0
    for number in count():
        repo = f"me/killed-{case}-{kills}-{number}"
        arguments = (*CASES[case], "--push", repo, "--cache-size", "2M", "--public")
        ended = False
        while not ended:
            until = after_requests(desk.hub, moments.randint(0, MOST_REQUESTS), moments.uniform(0, 0.05))
            result = desk.runs(folder, *arguments, until=until if done < kills else None)
            ended = result.code == 0
            done += not ended
            assert result.code in (0, KILLED), result.err
        wanted = desk.expected(*CASES[case])
        assert desk.pushed(repo) == wanted
        assert desk.uploaded_again(repo) == []
        assert [wanted.keys() <= seen.keys() for seen in desk.hub.public_files(repo)] == [True]
        assert list(desk.hub.repos[repo].branches) == ["main"]
        assert files_below(folder) == []
        if done >= kills:
            return


@pytest.mark.parametrize(("case", "kills"), [("gguf", 4), ("rtn", 3)])
def test_killed_and_repeated(case: str, kills: int, desk: Desk, tmp_path: Path) -> None:
    killed_often(desk, tmp_path, case, kills)


@pytest.mark.parametrize("case", ["gguf", "rtn"])
def test_killed_when_all_is_shown(case: str, desk: Desk, tmp_path: Path) -> None:
    """Behind the last change of the repo: what is left here is tidied up by repeating, and nothing is refused."""
    for milliseconds in (0, 1, 2, 4):
        repo = f"me/shown-{case}-{milliseconds}"
        arguments = (*CASES[case], "--push", repo, "--cache-size", "2M", "--public")

        def shown(repo: str = repo, seconds: float = milliseconds / 1000) -> None:
            while repo not in desk.hub.repos or desk.hub.repos[repo].private:
                time.sleep(0.0005)
            time.sleep(seconds)

        desk.runs(tmp_path, *arguments, until=shown)
        if files_below(tmp_path):
            desk.runs.done(tmp_path, *arguments)
        assert files_below(tmp_path) == []
        assert desk.pushed(repo) == desk.expected(*CASES[case])
        assert desk.uploaded_again(repo) == []
        assert len(desk.hub.public_files(repo)) == 1


@pytest.mark.full
@pytest.mark.parametrize("case", CASES)
def test_killed_at_twenty_moments(case: str, desk: Desk, tmp_path: Path) -> None:
    killed_often(desk, tmp_path, case, 20)
    desk.runs.done(tmp_path, "inspect", f"hub:{SOURCE}")  # and nothing is left that the next command stumbles over

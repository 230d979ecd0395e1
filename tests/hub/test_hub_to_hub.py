"""From the Hub to the Hub: what ends in the repo is what a run on a local folder writes, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_runs import MODEL, Desk, files_below

TEXT = ("--samples", "24", "--sequence-length", "64", "--min-tokens-per-expert", "32")
CASES = {
    "gguf": ("gguf", "q4_k_m", "--split-max-size", "1M"),
    "types": ("gguf", "q8_0,q4_0", "--split-max-size", "1M"),
    "imatrix": ("gguf", "iq4_xs", "--split-max-size", "1M", "--imatrix", "MATRIX"),
    "compensate": ("gguf", "q4_k_m", "--split-max-size", "1M", "--compensate", *TEXT),
    "awq": ("awq", *TEXT),
    "gptq": ("gptq", *TEXT),
    "rtn": ("rtn",),
}


@pytest.fixture(scope="session")
def matrix(desk: Desk) -> Path:
    """An importance matrix of the checkpoint on the Hub."""
    path = desk.folder / "imatrix.gguf"
    desk.runs.done(desk.folder, "imatrix", desk.folder / "sources" / MODEL, "-o", path, *TEXT)
    return path


@pytest.mark.parametrize("case", CASES)
def test_repo_holds_what_a_local_run_writes(
    case: str, desk: Desk, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    arguments = [str(request.getfixturevalue("matrix")) if text == "MATRIX" else text for text in CASES[case]]
    repo = f"me/{case}"
    result = desk.runs.done(tmp_path, *arguments, "--push", repo, "--cache-size", "2M")
    assert desk.hub.url + "/" + repo in result.out
    assert desk.pushed(repo) == desk.expected(*arguments)
    assert files_below(tmp_path) == []  # neither output nor journal
    assert desk.hub.repos[repo].private
    assert list(desk.hub.repos[repo].branches) == ["main"]
    assert desk.uploaded_again(repo) == []

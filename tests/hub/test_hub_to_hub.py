"""From the Hub to the Hub: what ends in the repo is what a local run writes, and others load it by its id."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hub_runs import MODEL, Desk, files_below, sha256_of
from hub_standin import TestHub

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
# What transformers computes of a checkpoint, and what could not be loaded.
LOGITS = """
import sys, torch, hashlib
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
dense = CompressedTensorsConfig(run_compressed=False)
options = {"dtype": torch.float32, "quantization_config": dense, "output_loading_info": True}
model, problems = AutoModelForCausalLM.from_pretrained(sys.argv[1], **options)
with torch.no_grad():
    logits = model(torch.arange(8)[None]).logits
say({"sha256": hashlib.sha256(logits.numpy().tobytes()).hexdigest(), "missing": sorted(problems["missing_keys"])})
"""


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
    besides = {path.name: sha256_of(path) for path in map(Path, arguments) if path.suffix == ".gguf"}  # the matrix
    assert desk.pushed(repo) == desk.expected(*arguments) | besides
    assert files_below(tmp_path) == []  # neither output nor journal
    assert desk.hub.repos[repo].private
    assert list(desk.hub.repos[repo].branches) == ["main"]
    assert desk.uploaded_again(repo) == []


def test_same_bytes_through_xet(desk: Desk, xet_hub: TestHub, tmp_path: Path) -> None:
    """As users meet it: large files go through hf_xet in both directions."""
    xet_hub.add_repo(f"MiniMaxAI/{MODEL}", desk.folder / "sources" / MODEL)
    out = tmp_path / f"{MODEL}-Q4_K_M.gguf"
    done = xet_hub.run(*CASES["gguf"], "-o", out, "--push", "me/xet", "--cache-size", "2M")
    assert done.returncode == 0, done.stderr
    files = xet_hub.files("me/xet")
    wanted = desk.expected(*CASES["gguf"])
    assert {path: files.get(path) for path in wanted} == wanted
    for path, sha256 in wanted.items():
        assert hashlib.sha256(xet_hub.read("me/xet", path)).hexdigest() == sha256
    assert files_below(tmp_path) == []


def test_repo_says_which_commit_it_was_made_of(desk: Desk, tmp_path: Path) -> None:
    desk.runs.done(tmp_path, "rtn", "--push", "me/origin", "--cache-size", "2M")
    origin = json.loads(desk.hub.read("me/origin", "source.json"))
    source = desk.hub.repos[f"MiniMaxAI/{MODEL}"]
    assert (origin["repo"], origin["commit"]) == (source.id, source.branches["main"])


def test_transformers_loads_what_was_pushed(desk: Desk, tmp_path: Path) -> None:
    desk.runs.done(tmp_path, "rtn", "--push", "me/loaded", "--cache-size", "2M")
    desk.runs.done(tmp_path, "rtn", desk.folder / "sources" / MODEL, "-o", tmp_path / "local")
    by_id, by_path = (desk.hub.ask(LOGITS, model) for model in ("me/loaded", tmp_path / "local"))
    assert by_id == by_path
    assert by_id["missing"] == []

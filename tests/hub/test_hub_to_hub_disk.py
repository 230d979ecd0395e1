"""A checkpoint of ten times the disk that a run may take goes from the Hub to the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from downloading import disk_bytes, watched
from harness import MakeCheckpoint
from hub_runs import Desk, files_below, licensed

BIG = "MiniMax-M2.5"
SIZE = {"layers": 34, "experts": 16, "width": 256, "vocab": 512}
CACHE, OUTPUT = 6_000_000, 2_000_000  # bytes of the source's cache, of one output file at most
CAP = CACHE + 2 * OUTPUT
SMALL = 600_000  # journals, the layers' records of an INT4 run, the card while it is made
CASES = {"gguf": ("gguf", "q4_k_m", "--split-max-size", str(OUTPUT)), "rtn": ("rtn",)}


@pytest.fixture(scope="module")
def big(desk: Desk, make_checkpoint: MakeCheckpoint, tiny_m2: Path) -> str:
    """The source's address."""
    made = make_checkpoint(desk.folder / "made" / BIG, shard_bytes=1_400_000, **SIZE)
    local = desk.add_source(BIG, licensed(made, tiny_m2))
    assert sum(path.stat().st_size for path in local.glob("*.safetensors")) >= 10 * CAP
    return f"hub:MiniMaxAI/{BIG}"


@pytest.mark.parametrize("case", CASES)
def test_disk_holds_the_cache_and_two_files_at_most(case: str, desk: Desk, big: str, tmp_path: Path) -> None:
    command, *options = CASES[case]
    wanted = desk.expected(command, *options, source=BIG, shard_bytes=OUTPUT)
    desk.forget()
    repo = f"me/disk-{case}"
    with watched(desk.hub.home) as cache, watched(tmp_path) as output:
        arguments = (command, *options, big, "--push", repo, "--cache-size", CACHE)
        desk.runs.done(tmp_path, *arguments, shard_bytes=OUTPUT)
    assert cache.value <= CACHE
    assert output.value <= 2 * OUTPUT + SMALL
    assert disk_bytes(desk.hub.home) < CACHE / 2  # shards are gone, the mirror stays
    assert desk.pushed(repo) == wanted
    assert files_below(tmp_path) == []

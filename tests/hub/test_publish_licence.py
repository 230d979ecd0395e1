"""A GGUF that was made from a repo has no licence beside it: it is that repo's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from harness import Cli
from hub_standin import TestHub
from publishing import GGUF_REPO, MODEL, Made


def test_licence_of_the_source_goes_along(lfs_hub: TestHub, made: Made, tmp_path: Path, cli: Cli) -> None:
    source = made.ggufs.parent / MODEL
    lfs_hub.add_repo(f"MiniMaxAI/{MODEL}", source)
    commit = lfs_hub.repos[f"MiniMaxAI/{MODEL}"].branches["main"]
    gguf = Path(shutil.copyfile(made.q8_0, tmp_path / made.q8_0.name))
    assert "LICENSE: missing" in cli("publish", gguf, "--repo", GGUF_REPO, "--unverified").err
    record = {"repo": f"MiniMaxAI/{MODEL}", "revision": None, "commit": commit, "files": {}}
    gguf.with_name(f"{gguf.stem}.source.json").write_text(json.dumps(record))
    assert cli("publish", gguf, "--repo", GGUF_REPO, "--unverified").code == 0
    assert lfs_hub.read(GGUF_REPO, "LICENSE") == (source / "LICENSE").read_bytes()

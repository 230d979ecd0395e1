"""`quantkit publish`: arguments that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Cli

REPO = "me/MiniMax-M2.7-GGUF"
CASES = [
    ((), "--repo"),
    (("--repo", REPO), "nothing to publish"),
    (("missing", "--repo", REPO), "missing"),
    (("{empty}", "--repo", REPO), "{empty}"),
    (("{file}", "--repo", REPO), "{file}"),
    (("{file}", "{empty}", "--repo", REPO), "{file}"),
    (("{gguf}", "--repo", REPO), "{gguf}"),
    (("{gguf}", "--repo", "name-alone"), "owner/name"),
    (("{gguf}", "--repo", f"{REPO}@v1"), "owner/name"),
    (("{gguf}", "--repo", REPO, "--tag", "a b"), "--tag"),
    (("{gguf}", "--repo", REPO, "--tag", "-x"), "--tag"),
    (("{gguf}", "--repo", REPO, "--imatrix", "missing.gguf"), "{gguf}"),
]


@pytest.mark.parametrize(("arguments", "said"), CASES, ids=range(len(CASES)))
def test_refused_without_asking_the_hub(
    tmp_path: Path, cli: Cli, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    names = {"empty": tmp_path / "empty", "file": tmp_path / "a.txt", "gguf": tmp_path / "a.gguf"}
    names["empty"].mkdir()
    names["file"].write_text("text")
    names["gguf"].write_bytes(b"not one")
    result = cli("publish", *(argument.format(**names) for argument in arguments))
    assert result.code == 2
    (line,) = result.error_lines
    assert said.format(**names) in line
    assert not list(tmp_path.glob("*.publish"))

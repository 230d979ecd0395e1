"""Outputs that cannot be written: exit code 2, one line, nothing under the final name."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness import Cli, Damage
from refusals import NORM, Refused, refusal


@pytest.mark.parametrize("source", ["nothing", "a file", "deep/er"])
def test_source_that_is_no_folder(cli: Cli, tmp_path: Path, source: str) -> None:
    (tmp_path / "a file").write_text("{}")
    line = refusal(cli("gguf", "q8_0", tmp_path / source, "-o", tmp_path / "x.gguf"))
    assert f"{tmp_path / source}: not a folder" in line


def test_without_an_output_the_file_is_here_and_named_after_the_source(
    cli: Cli, damaged: Damage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert cli("gguf", "q8_0", damaged.folder).code == 0
    assert [path.name for path in here.iterdir()] == ["checkpoint-Q8_0.gguf"]
    assert cli("gguf", "q8_0,q4_0", damaged.folder, "--force").code == 0
    assert sorted(path.name for path in here.iterdir()) == ["checkpoint-Q4_0.gguf", "checkpoint-Q8_0.gguf"]


@pytest.mark.parametrize("out", ["nothing/x.gguf", "file/x.gguf"])
def test_output_in_no_folder(cli: Cli, damaged: Damage, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("")
    line = refusal(cli("gguf", "q8_0", damaged.folder, "-o", tmp_path / out))
    assert str((tmp_path / out).parent) in line


def test_output_that_is_a_folder(cli: Cli, damaged: Damage, tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(cli("gguf", "q8_0", damaged.folder, "-o", tmp_path))
    assert refusal(cli("gguf", "q8_0", damaged.folder, "-o", ""))
    assert refusal(cli("gguf", "q8_0", damaged.folder, "-o", tmp_path, "--force"))


def test_output_whose_name_is_too_long(refused: Refused) -> None:
    for length in (250, 300):  # with ".partial", and by itself
        line = refusal(refused.cli("gguf", "q8_0", refused.source, "-o", refused.out.parent / ("x" * length)))
        assert "xxx" in line
    assert list(refused.out.parent.iterdir()) == []


def test_output_exists(refused: Refused) -> None:
    refused.out.write_text("precious")
    line = refusal(refused.cli("gguf", "q8_0", refused.source, "-o", refused.out))
    assert f"{refused.out}: output exists" in line
    assert "--force" in line
    assert refused.out.read_text() == "precious"
    assert [path.name for path in refused.out.parent.iterdir()] == ["model.gguf"]


def test_a_part_of_the_output_exists(refused: Refused) -> None:
    part = refused.out.with_name("model-00002-of-00002.gguf")
    part.write_text("precious")
    line = refusal(refused.cli("gguf", "q8_0", refused.source, "-o", refused.out, "--split-max-size", "700K"))
    assert f"{part}: output exists" in line
    assert part.read_text() == "precious"


def test_output_that_is_no_file(refused: Refused) -> None:
    os.mkfifo(refused.out)
    assert str(refused.out) in refusal(refused.cli("gguf", "q8_0", refused.source, "-o", refused.out, "--force"))
    assert refused.out.is_fifo()


def test_output_that_is_one_of_the_sources_files(refused: Refused) -> None:
    shard = next(refused.source.glob("*.safetensors"))
    for name in (shard.name, "config.json", "tokenizer.json"):
        before = (refused.source / name).read_bytes()
        line = refusal(refused.cli("gguf", "q8_0", refused.source, "-o", refused.source / name, "--force"))
        assert name in line
        assert (refused.source / name).read_bytes() == before


@pytest.mark.parametrize("suffix", [".journal", ".partial"])
def test_folder_in_the_place_of_a_working_file(refused: Refused, suffix: str) -> None:
    path = refused.out.with_name(refused.out.name + suffix)
    path.mkdir()
    refused(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write and read everything")
def test_permissions(refused: Refused, damaged: Damage) -> None:
    refused.out.parent.chmod(0o500)
    refused(refused.out.parent, "not writable")
    refused.out.parent.chmod(0o700)
    shard = damaged.shard_of(NORM)
    shard.chmod(0)
    refused(shard)


@pytest.fixture
def free_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let disks have this many free bytes."""

    def set_free(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=free, used=0, free=free))

    return set_free


def output_bytes(cli: Cli, source: Path, out: Path) -> int:
    result = cli("gguf", "q8_0", source, "-o", out, "--json")
    out.unlink()
    return int(result.json()["output_bytes"])


def test_disk_too_small(refused: Refused, free_bytes: Callable[[int], None]) -> None:
    needed = output_bytes(refused.cli, refused.source, refused.out)
    free_bytes(needed - 1)
    refused(refused.out.parent, "free")
    assert list(refused.out.parent.iterdir()) == [], "nothing was begun, so nothing stays behind"
    free_bytes(needed)
    assert refused.cli("gguf", "q8_0", refused.source, "-o", refused.out).code == 0


def test_disk_too_small_for_one_mix_leaves_the_way_free_for_another(
    refused: Refused, free_bytes: Callable[[int], None]
) -> None:
    free_bytes(output_bytes(refused.cli, refused.source, refused.out) - 1)
    refused("free")
    assert refused.cli("gguf", "q4_k_m", refused.source, "-o", refused.out).error_lines == []


# Types, rules, recipes

"""What `quantkit publish` refuses, in one line and before anything is written on the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Cli
from hub_standin import Fault, TestHub
from publishing import GGUF_REPO, INT4_REPO, MINIMAX_LICENCE, Made, write_report, writes

UNVERIFIED = ("--unverified",)


@pytest.fixture
def folder(made: Made, tmp_path: Path) -> Path:
    """A checkpoint folder to spoil."""
    return Path(shutil.copytree(made.int4, tmp_path / made.int4.name))


def edit_index(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def cut(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)


SPOILED: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "LICENSE").unlink(), "LICENSE"),
    (lambda folder: (folder / "LICENSE").write_text("do what you like"), "LICENSE"),
    (lambda folder: (folder / "model.safetensors.partial").write_bytes(b""), "unfinished"),
    (lambda folder: folder.with_name(folder.name + ".layers").mkdir(), "unfinished"),
    (lambda folder: (folder / "quantkit.json").unlink(), "quantkit.json"),
    (lambda folder: (folder / "config.json").unlink(), "config.json"),
    (lambda folder: (folder / "more").mkdir(), "more"),
    (edit_index, "model-00002-of-00002.safetensors"),
    (cut, "model.safetensors"),
]


@pytest.mark.parametrize(("spoil", "said"), SPOILED, ids=range(len(SPOILED)))
def test_spoiled_folders(lfs_hub: TestHub, folder: Path, cli: Cli, spoil: Callable[[Path], object], said: str) -> None:
    spoil(folder)
    result = cli("publish", folder, "--repo", INT4_REPO, *UNVERIFIED)
    assert result.code == 2
    (line,) = result.error_lines
    assert said in line
    assert str(folder) in line
    assert writes(lfs_hub) == []
    assert not folder.with_name(folder.name + ".publish").exists()


def test_a_report_is_asked_for(lfs_hub: TestHub, folder: Path, tmp_path: Path, cli: Cli) -> None:
    assert "--unverified" in cli("publish", folder, "--repo", INT4_REPO).err
    failed = write_report(tmp_path / "failed", folder, "FAIL", kld=0.5)
    result = cli("publish", folder, "--repo", INT4_REPO, "--report", failed)
    assert result.code == 2
    assert "FAIL" in result.err
    assert "kld.mean: 0.5" in result.err
    assert writes(lfs_hub) == []
    assert cli("publish", folder, "--repo", INT4_REPO, "--report", failed, *UNVERIFIED).code == 0
    assert "FAIL" in lfs_hub.read(INT4_REPO, "README.md").decode()


def test_inconclusive_is_published_and_said(lfs_hub: TestHub, folder: Path, tmp_path: Path, cli: Cli) -> None:
    report = write_report(tmp_path / "report", folder, "INCONCLUSIVE")
    assert cli("publish", folder, "--repo", INT4_REPO, "--report", report).code == 0
    assert "INCONCLUSIVE" in lfs_hub.read(INT4_REPO, "README.md").decode()


def test_report_of_other_weights(lfs_hub: TestHub, made: Made, tmp_path: Path, cli: Cli) -> None:
    report = write_report(tmp_path / "report", made.q8_0)
    result = cli("publish", made.q4_k_m, "--repo", GGUF_REPO, "--report", report)
    assert result.code == 2
    assert str(report) in result.err
    assert writes(lfs_hub) == []


def test_licence_of_the_source_counts(lfs_hub: TestHub, folder: Path, tmp_path: Path, cli: Cli) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "LICENSE").write_text(MINIMAX_LICENCE)
    lfs_hub.add_repo("MiniMaxAI/MiniMax-M2.7", source)
    result = cli("publish", folder, "--repo", INT4_REPO, *UNVERIFIED)
    assert result.code == 2
    assert "differs from the LICENSE of MiniMaxAI/MiniMax-M2.7" in result.err
    given = tmp_path / "given"
    given.write_text(MINIMAX_LICENCE)
    assert cli("publish", folder, "--repo", INT4_REPO, "--license", given, *UNVERIFIED).code == 0
    assert lfs_hub.read(INT4_REPO, "LICENSE").decode() == MINIMAX_LICENCE
    card = lfs_hub.read(INT4_REPO, "README.md").decode()
    assert "license_name: minimax-m2.7-non-commercial" in card
    assert "non-commercial" in card.split("---")[2].split("\n## ")[0].lower()


def test_other_content_under_a_name_of_ours(lfs_hub: TestHub, made: Made, tmp_path: Path, cli: Cli) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / made.q8_0.name).write_bytes(b"\0" * made.q8_0.stat().st_size)
    lfs_hub.add_repo(GGUF_REPO, other)
    before = lfs_hub.files(GGUF_REPO)
    result = cli("publish", made.ggufs, "--repo", GGUF_REPO, *UNVERIFIED)
    assert result.code == 2
    assert f"{GGUF_REPO}/{made.q8_0.name}" in result.err
    assert lfs_hub.files(GGUF_REPO) == before
    assert writes(lfs_hub) == []


def test_tags_are_never_moved(lfs_hub: TestHub, made: Made, cli: Cli) -> None:
    assert cli("publish", made.q8_0, "--repo", GGUF_REPO, "--tag", "v1", *UNVERIFIED).code == 0
    assert cli("publish", made.q8_0, "--repo", GGUF_REPO, "--tag", "v1", *UNVERIFIED).code == 0  # the same commit
    assert cli("publish", made.q4_k_m, "--repo", GGUF_REPO, *UNVERIFIED).code == 0
    lfs_hub.log.clear()
    result = cli("publish", *made.parts[:1], "--repo", GGUF_REPO, "--tag", "v1", *UNVERIFIED)
    assert result.code == 2
    assert "v1" in result.err
    assert writes(lfs_hub) == []


@pytest.mark.parametrize("token", ["read", "none", "someone else's"])
def test_tokens_that_may_not(hub: TestHub, client_of: Callable[..., None], made: Made, cli: Cli, token: str) -> None:
    client_of(hub, {"read": hub.read_token, "none": None, "someone else's": hub.other_token}[token])
    result = cli("publish", made.int4, "--repo", INT4_REPO, *UNVERIFIED)
    assert result.code == 2
    assert "token" in result.error_lines[-1]
    assert "hf_" not in result.err
    assert writes(hub) == []


def test_full_storage_is_said_and_can_be_mended(lfs_hub: TestHub, made: Made, cli: Cli) -> None:
    lfs_hub.private_limit = 1_000_000
    result = cli("publish", made.int4, "--repo", INT4_REPO, *UNVERIFIED)
    assert result.code == 2
    assert "storage" in result.error_lines[-1]
    assert lfs_hub.files(INT4_REPO) == {}
    lfs_hub.private_limit = None
    assert cli("publish", made.int4, "--repo", INT4_REPO, *UNVERIFIED).code == 0


def test_unfinished_conversion_beside_a_gguf(lfs_hub: TestHub, made: Made, tmp_path: Path, cli: Cli) -> None:
    shutil.copyfile(made.q8_0, tmp_path / made.q8_0.name)
    journal = tmp_path / f"{made.q8_0.name}.journal"
    journal.touch()
    result = cli("publish", tmp_path / made.q8_0.name, "--repo", GGUF_REPO, *UNVERIFIED)
    assert result.code == 2
    assert str(journal) in result.err


def test_missing_part(lfs_hub: TestHub, made: Made, tmp_path: Path, cli: Cli) -> None:
    for part in made.parts[:-1]:
        shutil.copyfile(part, tmp_path / part.name)
    result = cli("publish", tmp_path / made.parts[0].name, "--repo", GGUF_REPO, *UNVERIFIED)
    assert result.code == 2
    assert made.parts[-1].name in result.err
    assert writes(lfs_hub) == []


def test_importance_matrix_that_was_not_used(lfs_hub: TestHub, made: Made, tmp_path: Path, cli: Cli) -> None:
    matrix = tmp_path / "imatrix.gguf"
    matrix.write_bytes(b"GGUF")
    result = cli("publish", made.q8_0, "--repo", GGUF_REPO, "--imatrix", matrix, *UNVERIFIED)
    assert result.code == 2
    assert str(matrix) in result.err


def test_dry_run_writes_nothing_and_needs_no_token(
    hub: TestHub, client_of: Callable[..., None], made: Made, cli: Cli
) -> None:
    hub.multipart_over = 1 << 30
    client_of(hub, None)
    result = cli("publish", made.ggufs, "--repo", GGUF_REPO, *UNVERIFIED, "--dry-run", "--json")
    assert result.code == 0, result.err
    plan = result.json()
    client_of(hub)
    assert writes(hub) == []
    assert cli("publish", made.ggufs, "--repo", GGUF_REPO, *UNVERIFIED).code == 0
    tree = hub.repos[GGUF_REPO].at("main").tree
    assert {file["path"]: file["bytes"] for file in plan["files"]} == {
        path: entry.size for path, entry in tree.items() if path != ".gitattributes"
    }
    assert plan["card"] == hub.read(GGUF_REPO, "README.md").decode()
    shown = cli("publish", made.ggufs, "--repo", GGUF_REPO, *UNVERIFIED, "--dry-run").out
    assert all(path in shown for path in hub.files(GGUF_REPO))
    assert plan["card"] in shown
    assert not list(made.ggufs.parent.glob("*.publish"))


def test_dry_run_without_the_hub(hub: TestHub, client_of: Callable[..., None], made: Made, cli: Cli) -> None:
    client_of(hub, None)
    hub.fail(Fault(".", "cut", times=99))
    result = cli("publish", made.int4, "--repo", INT4_REPO, *UNVERIFIED, "--dry-run")
    assert result.code == 0
    assert "cannot be reached" in result.err
    assert "README.md" in result.out

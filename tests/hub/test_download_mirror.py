"""The mirror folder of a Hub repository: what is in it, and when the network is asked."""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_standin import Fault, TestHub

from quantkit.checkpoint.index import open_checkpoint
from quantkit.errors import BadInput, RunFailed
from quantkit.hub.address import Address
from quantkit.hub.download.mirror import Mirror, source_record
from quantkit.hub.download.source import open_source
from quantkit.hub.repo_files import RemoteFile, RepoFiles

SOURCE = Path("hub:MiniMaxAI/Small")
RESOLVE = "^GET .*/resolve/"


@pytest.fixture
def original(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint with files of every kind beside its shards."""
    folder = Path(shutil.copytree(small_checkpoint, tmp_path / "Small"))
    (folder / "LICENSE").write_text("NON-COMMERCIAL LICENSE\n")
    (folder / "docs").mkdir()
    (folder / "docs" / "guide.md").write_text("guide\r\n")
    (folder / "figure.png").write_bytes(bytes(range(256)))
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    (folder / "consolidated.safetensors").write_bytes(b"not in the index")
    return folder


@pytest.fixture
def home(hub: TestHub, original: Path, client_of: Callable[..., None]) -> Path:
    hub.add_repo("MiniMaxAI/Small", original)
    client_of(hub)
    return hub.home


def test_the_mirror_has_the_small_files_and_nothing_else(hub: TestHub, home: Path, original: Path) -> None:
    with open_source(SOURCE, 0, quiet=True) as folder:
        assert folder.name == "Small"
        assert folder.parent == home / "quantkit" / "MiniMaxAI--Small" / hub.repos["MiniMaxAI/Small"].at("main").oid
        mirrored = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        weights = (".safetensors", ".bin")
        expected = {path for path in hub.files("MiniMaxAI/Small") if not path.endswith(weights)}
        assert mirrored == expected | {".gitattributes"}
        assert filecmp.cmpfiles(original, folder, sorted(expected), shallow=False) == (sorted(expected), [], [])
    assert hub.requests("pytorch_model|consolidated") == []


def test_headers_are_those_of_the_shards(home: Path, original: Path) -> None:
    with open_source(SOURCE, 0, quiet=True) as folder:
        checkpoint, local = open_checkpoint(folder), open_checkpoint(original)
        assert checkpoint.layout_hash() == local.layout_hash()
        assert {name: (entry.offset, entry.nbytes) for name, entry in checkpoint.tensors.items()} == {
            name: (entry.offset, entry.nbytes) for name, entry in local.tensors.items()
        }
        assert [checkpoint.shard_name(path) for path in checkpoint.shards] == [
            local.shard_name(path) for path in local.shards
        ]


def test_a_header_longer_than_the_guess_takes_a_second_request(
    hub: TestHub, home: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.hub.download import mirror

    monkeypatch.setattr(mirror, "HEADER_GUESS", 100)
    with open_source(SOURCE, 0, quiet=True) as folder:
        assert open_checkpoint(folder).layout_hash() == open_checkpoint(original).layout_hash()
    shards = len(open_checkpoint(original).shards)
    assert len(hub.requests(RESOLVE + ".*safetensors( |$)")) == 2 * shards


def test_a_second_open_asks_for_the_commit_alone(hub: TestHub, home: Path) -> None:
    with open_source(SOURCE, 0, quiet=True):
        pass
    before = len(hub.requests(RESOLVE))
    with open_source(SOURCE, 0, quiet=True) as folder:
        open_checkpoint(folder)
    assert len(hub.requests(RESOLVE)) == before
    (folder / "config.json").unlink()
    with open_source(SOURCE, 0, quiet=True):
        assert (folder / "config.json").is_file()
    assert len(hub.requests(RESOLVE)) == before + 1


def test_where_it_comes_from(hub: TestHub, home: Path, original: Path) -> None:
    with open_source(Path("hub:MiniMaxAI/Small@main"), 0, quiet=True) as folder:
        record = source_record(folder)
    assert record is not None
    assert (record.repo, record.revision, record.endpoint) == ("MiniMaxAI/Small", "main", hub.url)
    assert record.commit == hub.repos["MiniMaxAI/Small"].at("main").oid
    assert {path: file.sha256 for path, file in record.shards.items()} == {
        path: sha256 for path, sha256 in hub.files("MiniMaxAI/Small").items() if path.endswith(".safetensors")
    }
    assert source_record(original) is None


def test_a_local_folder_passes_through(original: Path) -> None:
    with open_source(original, 0, quiet=True) as folder:
        assert folder == original


@pytest.mark.parametrize("kind", ["500", "429", "cut", "corrupt"])
def test_trouble_while_it_is_filled(hub: TestHub, home: Path, original: Path, kind: str) -> None:
    hub.fail(Fault(RESOLVE, kind, times=3))
    with open_source(SOURCE, 0, quiet=True) as folder:
        assert (folder / "LICENSE").read_bytes() == (original / "LICENSE").read_bytes()
        assert (folder / "config.json").read_bytes() == (original / "config.json").read_bytes()


def test_nothing_half_written_when_it_fails(hub: TestHub, home: Path) -> None:
    hub.fail(Fault(RESOLVE + ".*config.json", "503", times=99))
    with pytest.raises(RunFailed, match=r"config\.json"), open_source(SOURCE, 0, quiet=True):
        pass
    assert list(home.rglob("*.partial")) == []
    assert list(home.rglob("source.json")) == []
    hub.faults.clear()
    with open_source(SOURCE, 0, quiet=True) as folder:
        open_checkpoint(folder)


def test_offline_needs_an_earlier_run(hub: TestHub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with (
        pytest.raises(BadInput, match="HF_HUB_OFFLINE is set and an earlier run left no copy"),
        open_source(SOURCE, 0, quiet=True),
    ):
        pass
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with open_source(SOURCE, 0, quiet=True) as folder:
        pass
    asked = len(hub.log)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for source in (SOURCE, Path(f"{SOURCE}@main"), Path(f"{SOURCE}@{folder.parent.name}")):
        with open_source(source, 0, quiet=True) as again:
            assert again == folder
            checkpoint = open_checkpoint(again)
            name = next(iter(checkpoint.tensors))
            with pytest.raises(BadInput, match="HF_HUB_OFFLINE is set and this is not on the disk"):
                checkpoint.files.read_into(
                    checkpoint.shard_name(checkpoint.tensors[name].path), memoryview(bytearray(8)), 0
                )
    assert len(hub.log) == asked


def test_a_path_that_leaves_the_folder_is_refused(hub: TestHub, home: Path) -> None:
    for path in ("../x.json", "/etc/x.json", "a/../../x.json", "C:\\x.json"):
        files = RepoFiles(Address("me/x"), ("0" * 40, {path: RemoteFile(path, 1, None, "")}))
        with pytest.raises(BadInput, match="leaves the folder"):
            Mirror(files).complete()


def test_what_is_neither_a_folder_nor_a_repository(home: Path) -> None:
    with (
        pytest.raises(BadInput, match="nor is there a local folder me/none"),
        open_source(Path("me/none"), 0, quiet=True),
    ):
        pass


def test_a_home_that_cannot_be_used(home: Path) -> None:
    (home / "quantkit").write_text("a file")
    with pytest.raises(BadInput, match="set HF_HOME to a folder with room"), open_source(SOURCE, 0, quiet=True):
        pass


def test_two_processes_fill_the_same_mirror(hub: TestHub, home: Path, original: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from quantkit.hub.download.source import open_source\n"
        "from quantkit.checkpoint.index import open_checkpoint\n"
        "with open_source(Path(sys.argv[1]), 0, quiet=True) as folder: print(open_checkpoint(folder).layout_hash())"
    )
    hub.fail(Fault(RESOLVE, "slow", times=8, bytes_per_second=200_000))
    command = [sys.executable, "-c", code, str(SOURCE)]
    runs = [
        subprocess.Popen(command, env=hub.environment(), stdout=subprocess.PIPE, text=True, cwd=home.parent)
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=60)[0].strip() for run in runs]
    assert outputs == [open_checkpoint(original).layout_hash()] * 2
    paths = [line.path for line in hub.requests(RESOLVE)]
    assert len(paths) == len(set(paths))  # the second one found what the first had fetched

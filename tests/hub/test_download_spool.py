"""Shards that come ahead of need, within a bounded folder, and go when they were used."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from downloading import assert_equal, disk_bytes, in_order, read, read_all, spooled, watched
from hub_standin import Fault, TestHub

from quantkit.checkpoint.index import open_checkpoint
from quantkit.errors import BadInput, QuantkitError, RunFailed
from quantkit.hub.address import Address
from quantkit.hub.download.fetch import Stopped
from quantkit.hub.download.mirror import Mirror
from quantkit.hub.download.source import open_source
from quantkit.hub.repo_files import RepoFiles

SOURCE = Path("hub:MiniMaxAI/Small")
AMPLE = 100_000_000
WHOLE = r"^GET .*/resolve/.*\.safetensors$"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def home(hub: TestHub, small_checkpoint: Path, client_of: Callable[..., None]) -> Path:
    hub.add_repo("MiniMaxAI/Small", small_checkpoint)
    client_of(hub)
    return hub.home


@pytest.fixture
def room_for(home: Path, small_checkpoint: Path) -> Callable[[float], int]:
    """The cache size that has room for so many shards of the largest size beside the mirror."""
    mirror = Mirror(RepoFiles(Address("MiniMaxAI/Small")))
    mirror.complete()
    largest = max(path.stat().st_size for path in small_checkpoint.glob("*.safetensors"))

    def size(shards: float) -> int:
        return mirror.disk_bytes() + 64 * 1024 + int(shards * (largest + 20 * 1024))

    return size


def whole_downloads(hub: TestHub) -> list[str]:
    """Names of the shards in the order in which they were downloaded as whole files."""
    return [line.path.rpartition("/")[2] for line in hub.requests(WHOLE) if line.range is None]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited for 30 seconds"
        time.sleep(0.005)


def read_first(hub: TestHub, fault: Fault) -> None:
    """Open the source, then let the fault happen, expect everything and read the first tensor."""
    with open_source(SOURCE, AMPLE, quiet=True) as folder:
        checkpoint = open_checkpoint(folder)
        hub.fail(fault)
        checkpoint.files.expect(in_order(checkpoint))
        read(checkpoint, in_order(checkpoint)[0])


def fail_inside() -> Path:
    """A run that fails and so leaves its folder for shards behind; returns the folder."""
    with suppress(ZeroDivisionError), open_source(SOURCE, AMPLE, quiet=True) as folder:
        raise ZeroDivisionError
    return folder.parent / "weights-0"


@pytest.mark.parametrize("shards", [1, 1.5, 2, 3, 100])
def test_same_bytes_and_never_more_than_the_cap(
    hub: TestHub, home: Path, small_checkpoint: Path, room_for: Callable[[float], int], shards: float
) -> None:
    cap = room_for(shards)
    with watched(home) as peak, open_source(SOURCE, cap, quiet=True) as folder:
        read_all(folder, small_checkpoint)
    assert 0 < peak.value <= cap
    names = sorted(path.name for path in small_checkpoint.glob("*.safetensors"))
    assert sorted(whole_downloads(hub)) == names  # each once
    assert list(home.rglob("weights-?")) == []


def test_the_same_through_xet(xet_hub: TestHub, small_checkpoint: Path, client_of: Callable[..., None]) -> None:
    xet_hub.add_repo("MiniMaxAI/Small", small_checkpoint)
    client_of(xet_hub)
    cap = 1_600_000
    with watched(xet_hub.home) as peak, open_source(SOURCE, cap, quiet=True) as folder:
        read_all(folder, small_checkpoint)
    assert 0 < peak.value <= cap
    assert xet_hub.requests(r"xet-read-token")


def test_with_no_room_at_all_everything_goes_by_range(hub: TestHub, home: Path, small_checkpoint: Path) -> None:
    with open_source(SOURCE, 0, quiet=True) as folder:
        read_all(folder, small_checkpoint)
        assert spooled(home) == []
    assert whole_downloads(hub) == []


def test_it_is_ahead_of_the_reader_as_far_as_there_is_room(
    home: Path, small_checkpoint: Path, room_for: Callable[[float], int]
) -> None:
    with open_source(SOURCE, room_for(3), quiet=True) as folder:
        checkpoint = open_checkpoint(folder)
        entries = in_order(checkpoint)
        names = list(dict.fromkeys(entry.path.name for entry in entries))
        checkpoint.files.expect(entries)
        wait_until(lambda: spooled(home) == names[:3])
        assert_equal(checkpoint, [entry for entry in entries if entry.path.name == names[0]], small_checkpoint)
        wait_until(lambda: spooled(home) == names[1:4])


def test_a_shard_goes_with_its_last_tensor(home: Path) -> None:
    with open_source(SOURCE, AMPLE, quiet=True) as folder:
        checkpoint = open_checkpoint(folder)
        entries = [entry for entry in in_order(checkpoint) if entry.path == in_order(checkpoint)[0].path]
        checkpoint.files.expect(entries)
        read(checkpoint, entries[0])
        checkpoint.files.release(entries[1:])
        assert spooled(home) == [entries[0].path.name]
        checkpoint.files.release(entries[:1])
        assert spooled(home) == []


def test_expected_again_it_comes_again(hub: TestHub, home: Path, small_checkpoint: Path) -> None:
    with open_source(SOURCE, AMPLE, quiet=True) as folder:
        for _ in range(2):
            read_all(folder, small_checkpoint)
    names = [path.name for path in small_checkpoint.glob("*.safetensors")]
    assert sorted(whole_downloads(hub)) == sorted(names * 2)


def test_a_few_tensors_are_read_by_range(hub: TestHub, home: Path, small_checkpoint: Path) -> None:
    with open_source(SOURCE, AMPLE, quiet=True) as folder:
        checkpoint = open_checkpoint(folder)
        few = in_order(checkpoint)[:2]
        assert sum(entry.nbytes for entry in few) * 4 < checkpoint.files.size(few[0].path.name)
        checkpoint.files.expect(few)
        for entry in few:
            checkpoint.files.will_need(entry.path.name, entry.offset, entry.nbytes)
        assert_equal(checkpoint, few, small_checkpoint)
        unexpected = in_order(checkpoint)[-1]
        assert_equal(checkpoint, [unexpected], small_checkpoint)
    assert whole_downloads(hub) == []


def test_hinted_ranges_are_fetched_before_they_are_read(
    hub: TestHub, home: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.hub.download import ranges

    monkeypatch.setattr(ranges, "SMALL_READ", 1000)
    with open_source(SOURCE, 0, quiet=True) as folder:
        checkpoint = open_checkpoint(folder)
        entries = [entry for entry in in_order(checkpoint) if entry.nbytes > 1000][:4]
        before = len(hub.requests(WHOLE))
        for entry in entries:
            checkpoint.files.will_need(entry.path.name, entry.offset, entry.nbytes)
        wait_until(lambda: len(hub.requests(WHOLE)) == before + len(entries))
        assert_equal(checkpoint, entries, small_checkpoint)
        assert len(hub.requests(WHOLE)) == before + len(entries)


@pytest.mark.parametrize("shards", [1, 2])
def test_no_deadlock_when_all_shards_are_needed_at_once(
    home: Path, small_checkpoint: Path, room_for: Callable[[float], int], shards: int
) -> None:
    """Four readers go through all tensors in orders of their own, and nothing is released before all have it all."""
    errors: list[BaseException] = []
    with watched(home) as peak, open_source(SOURCE, room_for(shards), quiet=True) as folder:
        checkpoint, local = open_checkpoint(folder), open_checkpoint(small_checkpoint)
        entries = in_order(checkpoint)
        checkpoint.files.expect(entries)

        def work(seed: int) -> None:
            try:
                for entry in random.Random(seed).sample(entries, len(entries)):
                    assert read(checkpoint, entry) == read(local, local.tensors[entry.name])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        checkpoint.files.release(entries)
        wait_until(lambda: spooled(home) == [])
    assert errors == []
    assert peak.value <= room_for(shards)


@pytest.mark.parametrize("kind", ["500", "503", "429", "cut", "lost", "slow"])
def test_trouble_that_passes(hub: TestHub, home: Path, small_checkpoint: Path, kind: str) -> None:
    with open_source(SOURCE, AMPLE, quiet=True) as folder:
        hub.fail(Fault(WHOLE, kind, times=2, after_bytes=50_000 if kind == "cut" else 0, bytes_per_second=2_000_000))
        hub.fail(Fault(r"^HEAD .*\.safetensors", "500" if kind == "500" else "503"))
        read_all(folder, small_checkpoint)


def test_damage_on_the_way_is_fetched_again(hub: TestHub, home: Path, small_checkpoint: Path) -> None:
    with open_source(SOURCE, AMPLE, quiet=True) as folder:
        hub.fail(Fault(WHOLE, "corrupt", times=2, after_bytes=70_000))
        read_all(folder, small_checkpoint)
    names = [path.name for path in small_checkpoint.glob("*.safetensors")]
    assert len(whole_downloads(hub)) == len(names) + 2


def test_damage_that_stays(hub: TestHub, home: Path) -> None:
    shard = sorted(path for path in hub.files("MiniMaxAI/Small") if path.endswith(".safetensors"))[0]
    fault = Fault(f"GET .*{shard}", "corrupt", times=99, after_bytes=70_000)
    with pytest.raises(RunFailed) as failed:
        read_first(hub, fault)
    assert f"{shard} came 3 times with hash " in str(failed.value)
    assert hub.files("MiniMaxAI/Small")[shard] in str(failed.value)
    assert "\n" not in str(failed.value)
    assert shard not in spooled(home)


@pytest.mark.parametrize(("kind", "expected"), [("401", BadInput), ("403", BadInput), ("503", RunFailed)])
def test_trouble_that_stays_reaches_the_reader(
    hub: TestHub, home: Path, kind: str, expected: type[QuantkitError], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(expected) as failed:
        read_first(hub, Fault(WHOLE, kind, times=999))
    assert hub.write_token not in str(failed.value)
    assert str(failed.value).startswith("MiniMaxAI/Small: model-0")
    assert capfd.readouterr() == ("", "")


def test_shards_behind_links_that_expire(hub: TestHub, home: Path, small_checkpoint: Path) -> None:
    hub.sign_links = 60.0
    with open_source(SOURCE, AMPLE, quiet=True) as folder:
        hub.fail(Fault("GET /content/", "expired", times=2))
        read_all(folder, small_checkpoint)
    assert {line.token for line in hub.requests("/content/")} == {None}


def test_the_end_comes_at_once_and_keeps_what_is_there(hub: TestHub, home: Path) -> None:
    """An exception in the middle of slow downloads."""
    began = time.monotonic()
    with suppress(KeyboardInterrupt), open_source(SOURCE, AMPLE, quiet=True) as folder:
        checkpoint = open_checkpoint(folder)
        hub.fail(Fault(WHOLE, "slow", times=99, skip=1, bytes_per_second=20_000))
        checkpoint.files.expect(in_order(checkpoint))
        wait_until(lambda: len(spooled(home)) == 1)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 6
    assert len(spooled(home)) == 1
    with pytest.raises(Stopped):
        read(checkpoint, in_order(checkpoint)[0])


def test_a_shard_that_was_wrong_and_one_that_was_not_checked(hub: TestHub, home: Path, small_checkpoint: Path) -> None:
    """What a killed run may leave: a right shard without a note, a wrong one, one cut off, and files of the client."""
    spool = fail_inside()
    right, wrong, short, *_ = sorted(small_checkpoint.glob("*.safetensors"))
    (spool / right.name).write_bytes(right.read_bytes())
    (spool / wrong.name).write_bytes(wrong.read_bytes()[:-1] + b"\xff")
    (spool / short.name).write_bytes(short.read_bytes()[:-1])
    (spool / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (spool / ".cache" / "huggingface" / "download" / "abc.incomplete").write_bytes(bytes(100_000))
    with open_source(SOURCE, AMPLE, quiet=True) as folder:
        read_all(folder, small_checkpoint)
    names = [path.name for path in small_checkpoint.glob("*.safetensors")]
    assert sorted(whole_downloads(hub)) == sorted(set(names) - {right.name})


def test_what_is_left_gives_way_when_room_is_needed(
    hub: TestHub, home: Path, small_checkpoint: Path, room_for: Callable[[float], int]
) -> None:
    spool = fail_inside()
    shards = sorted(small_checkpoint.glob("*.safetensors"))
    for shard in shards[-3:]:
        (spool / shard.name).write_bytes(shard.read_bytes())
    cap = room_for(2)
    with open_source(SOURCE, cap, quiet=True) as folder, watched(home) as peak:
        read_all(folder, small_checkpoint)
    assert peak.value <= cap


def test_folders_that_dead_runs_left_are_removed(home: Path) -> None:
    root = fail_inside().parent
    for number in (1, 5):
        (root / f"weights-{number}").mkdir()
        (root / f"weights-{number}" / "model.safetensors").write_bytes(bytes(1000))
    with open_source(SOURCE, AMPLE, quiet=True) as folder:
        assert [path.name for path in sorted(folder.parent.glob("weights-?"))] == ["weights-0"]


def test_the_users_own_cache_is_used_and_left_alone(hub: TestHub, home: Path, small_checkpoint: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot = Path(snapshot_download("MiniMaxAI/Small"))
    before = {path: path.stat().st_mtime_ns for path in snapshot.rglob("*")}
    taken = disk_bytes(home / "hub")
    asked = len(hub.requests("/resolve/"))
    with open_source(SOURCE, 0, quiet=True) as folder:
        read_all(folder, small_checkpoint)
    assert len(hub.requests("/resolve/")) == asked
    assert {path: path.stat().st_mtime_ns for path in snapshot.rglob("*")} == before
    assert disk_bytes(home / "hub") == taken


def test_offline_with_the_users_own_cache_alone(
    hub: TestHub, home: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, snapshot_download

    snapshot_download("MiniMaxAI/Small")
    asked = len(hub.log)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with open_source(SOURCE, 0, quiet=True) as folder:
        assert folder.name == "Small"
        read_all(folder, small_checkpoint)
    assert len(hub.log) == asked

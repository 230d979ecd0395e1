"""Ranges of files of the stand-in Hub, under every kind of trouble."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_standin import Fault, TestHub

from quantkit.errors import BadInput, RunFailed
from quantkit.hub.address import Address
from quantkit.hub.repo_files import RepoFiles

CONTENT = random.Random(7).randbytes(3_000_000)
GETS = r"^GET .*/resolve/.*model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(CONTENT)
    (tmp_path / "model" / "config.json").write_text('{"a": 1}')
    (tmp_path / "model" / "empty.txt").write_text("")
    return tmp_path / "model"


@pytest.fixture
def files(hub: TestHub, folder: Path, client_of: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> RepoFiles:
    from huggingface_hub import constants

    hub.add_repo("me/x", folder)
    client_of(hub)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    return RepoFiles(Address("me/x"))


def test_the_listing(hub: TestHub, files: RepoFiles) -> None:
    assert files.commit == hub.repos["me/x"].at("main").oid
    large, small = files.files["model.safetensors"], files.files["config.json"]
    assert (large.size, large.sha256) == (3_000_000, hashlib.sha256(CONTENT).hexdigest())
    assert (small.size, small.sha256) == (8, None)
    assert small.oid == hashlib.sha1(b'blob 8\0{"a": 1}').hexdigest()


def test_a_long_listing_comes_in_pages(hub: TestHub, folder: Path, client_of: Callable[..., None]) -> None:
    (folder / "more").mkdir()
    for number in range(25):
        (folder / "more" / f"{number}.txt").write_text(str(number))
    hub.page_size = 4
    hub.add_repo("me/x", folder)
    client_of(hub)
    assert len(RepoFiles(Address("me/x")).files) == 29


def test_the_revision_is_resolved_once(hub: TestHub, files: RepoFiles, folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").write_text('{"a": 2}')
    hub.add_repo("me/x", folder)
    assert files.read_all("config.json") == b'{"a": 1}'
    assert RepoFiles(Address("me/x")).read_all("config.json") == b'{"a": 2}'
    assert RepoFiles(Address("me/x", files.commit)).read_all("config.json") == b'{"a": 1}'


def test_any_range_and_no_byte_more(hub: TestHub, files: RepoFiles) -> None:
    for offset, length in [(0, 8), (1, 1), (2_999_999, 1), (1_000, 1_000_000), (0, 3_000_000)]:
        before = files.bytes_read
        assert files.read("model.safetensors", offset, length) == CONTENT[offset : offset + length]
        assert files.bytes_read - before == length
    assert files.read("model.safetensors", 2_999_990, 100) == CONTENT[-10:]
    assert files.read("model.safetensors", 3_000_000, 100) == b""
    assert files.read("model.safetensors", 9_000_000, 100) == b""
    assert files.read_all("empty.txt") == b""
    assert hub.requests(r"GET .*empty") == []


def test_many_threads(files: RepoFiles) -> None:
    wrong = []

    def read(seed: int) -> None:
        numbers = random.Random(seed)
        for _ in range(8):
            offset, length = numbers.randrange(3_000_000), numbers.randrange(200_000)
            if files.read("model.safetensors", offset, length) != CONTENT[offset : offset + length]:
                wrong.append((seed, offset, length))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault(GETS, "500", times=3),
        Fault(GETS, "429", times=2),
        Fault(GETS, "cut", times=3, after_bytes=100_000),
        Fault(GETS, "cut", times=2),
        Fault(GETS, "lost", times=2),
        Fault(GETS, "stall", times=1, after_bytes=200_000),
        Fault(GETS, "slow", times=1, bytes_per_second=2_000_000),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.after_bytes}",
)
def test_trouble_that_passes(hub: TestHub, files: RepoFiles, fault: Fault) -> None:
    hub.fail(
        Fault(**{name: getattr(fault, name) for name in ("match", "kind", "times", "after_bytes", "bytes_per_second")})
    )
    assert files.read("model.safetensors", 1_000, 1_000_000) == CONTENT[1_000:1_001_000]


def test_a_cut_connection_goes_on_behind_the_last_byte(hub: TestHub, files: RepoFiles) -> None:
    hub.fail(Fault(GETS, "cut", times=20, after_bytes=100_000))
    assert files.read("model.safetensors", 0, 3_000_000) == CONTENT
    asked = [line.range for line in hub.requests(GETS)]
    assert len(asked) == 21  # more than the attempts for one failure: each brought something
    assert files.bytes_read == 3_000_000
    starts = [int(text.removeprefix("bytes=").partition("-")[0]) for text in asked if text]
    assert starts == sorted(set(starts))


@pytest.mark.parametrize("kind", ["401", "403", "404"])
def test_what_does_not_pass(hub: TestHub, files: RepoFiles, kind: str) -> None:
    hub.fail(Fault(GETS, kind, times=99))
    with pytest.raises(BadInput, match=r"^me/x: model\.safetensors: ") as refused:
        files.read("model.safetensors", 0, 10)
    assert hub.write_token not in str(refused.value)
    assert len(hub.requests(GETS)) == 1


def test_a_server_that_stays_away(hub: TestHub, files: RepoFiles) -> None:
    hub.fail(Fault(GETS, "503", times=99))
    with pytest.raises(RunFailed, match="HTTP 503; repeat the command to go on"):
        files.read("model.safetensors", 0, 10)
    assert len(hub.requests(GETS)) == 6


def test_links_to_another_host_get_no_token_and_are_renewed_when_they_expire(hub: TestHub, files: RepoFiles) -> None:
    hub.sign_links = 60.0
    for number in range(4):
        assert files.read("model.safetensors", number, 1000) == CONTENT[number : number + 1000]
    assert len(hub.requests(GETS)) == 1  # a link is used again while it lasts
    hub.fail(Fault("GET /content/", "expired"))
    assert files.read("model.safetensors", 500, 1000) == CONTENT[500:1500]
    assert len(hub.requests(GETS)) == 2
    contents = hub.requests("GET /content/")
    assert [line.status for line in contents] == [206, 206, 206, 206, 403, 206]
    assert {line.token for line in contents} == {None}
    assert {line.token for line in hub.requests(GETS)} == {"me"}


def test_a_link_that_is_refused_at_once_is_asked_for_again(hub: TestHub, files: RepoFiles) -> None:
    hub.sign_links = 60.0
    hub.fail(Fault("GET /content/", "expired", times=3))
    assert files.read("model.safetensors", 0, 1000) == CONTENT[:1000]
    hub.fail(Fault("GET /content/", "expired", times=99))
    with pytest.raises(RunFailed) as failed:
        files.read("model.safetensors", 0, 1000)
    assert "Signature" not in str(failed.value)


def test_whole_files_are_checked(hub: TestHub, files: RepoFiles) -> None:
    for path in ("config.json", "model.safetensors"):
        hub.fail(Fault(f"GET .*/resolve/.*/{path}", "corrupt", times=2, after_bytes=3))
        assert hashlib.sha256(files.read_all(path)).hexdigest() == hub.files("me/x")[path]
        assert len(hub.requests(f"GET .*/resolve/.*/{path}")) == 3
    hub.fail(Fault("GET .*/resolve/.*/config.json", "corrupt", times=3))
    with pytest.raises(RunFailed, match=r"me/x: config\.json came 3 times with another hash"):
        files.read_all("config.json")


def test_what_is_not_there_or_too_large(files: RepoFiles) -> None:
    with pytest.raises(BadInput, match=r"me/x: there is no file nothing\.json at main"):
        files.read("nothing.json", 0, 1)
    with pytest.raises(BadInput, match="3000000 bytes, more than the 1000"):
        files.read_all("model.safetensors", most=1000)


def test_a_gated_repository(hub: TestHub, folder: Path, client_of: Callable[..., None]) -> None:
    hub.add_repo("us/gated", folder, gated=True)
    client_of(hub, token=hub.other_token)
    with pytest.raises(BadInput, match="access must be asked for"):
        RepoFiles(Address("us/gated")).read_all("config.json")


@pytest.mark.parametrize(
    ("address", "words"),
    [(Address("me/none"), "no such repository"), (Address("me/x", "v9"), "no such branch, tag or commit")],
)
def test_a_wrong_address(hub: TestHub, files: RepoFiles, address: Address, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        RepoFiles(address)


def test_in_xet_mode_ranges_go_by_http(xet_hub: TestHub, folder: Path, client_of: Callable[..., None]) -> None:
    xet_hub.add_repo("me/x", folder)
    client_of(xet_hub)
    files = RepoFiles(Address("me/x"))
    assert files.read("model.safetensors", 77, 100_000) == CONTENT[77:100_077]

"""Every fault of the stand-in reaches the unmodified client, as often as it was asked for."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from hub_standin import Fault, TestHub
from hub_standin.faults import QUOTA_MESSAGE

CONTENT = bytes(range(256)) * 1200
DOWNLOADS = [
    Fault("GET .*/500.bin", "500"),
    Fault("GET .*/429.bin", "429", retry_after=7),
    Fault("GET .*/401.bin", "401"),
    Fault("GET .*/403.bin", "403"),
    Fault("GET .*/quota.bin", "quota"),
    Fault("GET .*/expired.bin", "expired"),
    Fault("GET .*/cut.bin", "cut", after_bytes=1000),
    Fault("GET .*/lost.bin", "lost"),
    Fault("GET .*/stall.bin", "stall", after_bytes=1000),
    Fault("GET .*/slow.bin", "slow", bytes_per_second=1_000_000),
    Fault("GET .*/corrupt.bin", "corrupt", after_bytes=1000),
    Fault("GET .*/later.bin", "500", skip=1, times=2),
]
# What the client sees at the first request; afterwards it gets the file. `later` fails the second and third time.
SEEN = {
    "500": [500, 200],
    "429": [429, 200],
    "401": [401, 200],
    "403": [403, 200],
    "quota": [403, 200],
    "expired": [403, 200],
    "cut": ["RemoteProtocolError", 200],
    "lost": ["RemoteProtocolError", 200],
    "stall": ["ReadTimeout", 200],
    "slow": [200, 200],
    "corrupt": ["other bytes", 200],
    "later": [200, 500],
}
GET_ALL = """
import hashlib, time
from huggingface_hub.utils import get_session
def get(name):
    try:
        url = hf_hub_url("org/model", f"{name}.bin")
        answer = get_session().get(url, timeout=0.5, headers={"Authorization": "Bearer " + get_token()})
    except Exception as error:
        return type(error).__name__, None, None
    good = answer.status_code != 200 or hashlib.sha256(answer.content).hexdigest() == sys.argv[1]
    headers = answer.headers
    return answer.status_code if good else "other bytes", headers.get("x-error-message"), headers.get("retry-after")
found = {}
for name in sys.argv[2:]:
    start = time.time()
    found[name] = [get(name), time.time() - start, get(name)]
say(found)
"""


def test_download_faults_are_seen_once(hub: TestHub, tmp_path: Path) -> None:
    for name in SEEN:
        (tmp_path / f"{name}.bin").write_bytes(CONTENT)
    hub.add_repo("org/model", tmp_path)
    hub.fail(*DOWNLOADS)
    found = hub.ask(GET_ALL, hashlib.sha256(CONTENT).hexdigest(), *SEEN)
    assert {name: [first[0], second[0]] for name, (first, _, second) in found.items()} == SEEN
    assert found["quota"][0][1] == QUOTA_MESSAGE
    assert found["expired"][0][1] == "Request has expired"
    assert found["429"][0][2] == "7"
    assert found["slow"][1] >= 0.3  # 307,200 bytes
    sent = {line.path: line.bytes_out for line in reversed(hub.requests("GET .*(cut|stall)"))}  # the first of each
    assert set(sent.values()) == {1000}
    assert sorted(line.fault for line in hub.log if line.fault) == sorted(fault.kind for fault in DOWNLOADS)


UPLOAD = """
api.create_repo("me/model", private=True, exist_ok=True)
say(status(api.upload_file, repo_id="me/model", path_or_fileobj=sys.argv[1], path_in_repo="model.bin"))
"""


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    """Three parts of an LFS upload."""
    path = tmp_path / "large"
    path.write_bytes(CONTENT * 8)
    return path


@pytest.mark.parametrize(
    "fault",
    [Fault("PUT .*/part/.*/2$", "500"), Fault("PUT .*/lfs/", "cut", after_bytes=100_000), Fault("PUT .*/lfs/", "lost")],
    ids=["500", "cut", "lost"],
)
def test_client_repeats_an_upload_that_failed(hub: TestHub, large_file: Path, fault: Fault) -> None:
    hub.fail(fault)
    assert hub.ask(UPLOAD, large_file) is None
    assert hub.files("me/model") == {"model.bin": hashlib.sha256(large_file.read_bytes()).hexdigest()}
    assert len(hub.requests("PUT .*/lfs/")) == 3 + 1
    assert fault.seen == 1


@pytest.mark.parametrize(
    ("kind", "match", "status", "words"),
    [
        ("corrupt", "PUT .*/lfs/", 422, "Checksum mismatch"),
        ("quota", "lfs/objects/batch", 403, QUOTA_MESSAGE),
        ("401", "lfs/objects/batch", 401, "Invalid credentials"),
        ("413", "/preupload/", 413, "stand-in fault"),
    ],
)
def test_upload_that_is_refused_leaves_nothing(
    hub: TestHub, large_file: Path, kind: str, match: str, status: int, words: str
) -> None:
    hub.fail(Fault(match, kind, after_bytes=5))
    found = hub.ask(UPLOAD, large_file)
    assert found[1] == status
    assert words in found[2]
    assert hub.files("me/model") == {}
    assert hub.repos["me/model"].objects == {}


def test_commit_whose_answer_is_lost_has_happened(hub: TestHub, large_file: Path) -> None:
    hub.fail(Fault("POST .*/commit/main", "lost"))
    assert hub.ask(UPLOAD, large_file) == ["RemoteProtocolError"]
    assert set(hub.files("me/model")) == {"model.bin"}


def test_private_storage_is_limited(hub: TestHub, large_file: Path) -> None:
    hub.private_limit = large_file.stat().st_size - 1
    assert hub.ask(UPLOAD, large_file) == ["HfHubHTTPError", 403, QUOTA_MESSAGE]
    hub.repos["me/model"].set_visibility(private=False)
    assert hub.ask(UPLOAD, large_file) is None
    assert hub.uploaded_bytes == large_file.stat().st_size


def test_listing_tells_other_checksums(hub: TestHub, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(CONTENT)
    hub.add_repo("org/model", tmp_path)
    hub.fail(Fault("/paths-info/", "checksum"))
    code = 'say([api.get_paths_info("org/model", "model.bin")[0].lfs.sha256 for _ in range(2)])'
    wrong, right = hub.ask(code)
    assert wrong != right == hashlib.sha256(CONTENT).hexdigest()


def test_fault_can_be_set_and_cleared_while_it_runs(hub: TestHub) -> None:
    hub.fail(Fault("whoami", "stall", seconds=30))
    started = time.monotonic()
    hub.faults.clear()
    assert hub.ask('say(api.whoami()["name"])') == "me"
    assert time.monotonic() - started < 20


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind of fault 'explode'"):
        Fault("GET", "explode")

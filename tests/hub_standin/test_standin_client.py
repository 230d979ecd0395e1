"""The unmodified Hub client against the stand-in, in LFS and in Xet mode."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hub_standin import TestHub

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
CONTENTS = {
    FIRST: bytes(range(256)) * 12_000,  # three parts
    SECOND: b"second" * 1000,
    "config.json": b'{"model_type": "minimax_m2"}',
    "README.md": b"---\nlicense: mit\n---\n# Model\n",
    "quantkit/report.json": b"{}",
}
SHA256 = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}
UPLOAD = """
api.create_repo("me/model", private=True, exist_ok=True)
api.upload_folder(repo_id="me/model", folder_path=sys.argv[1], commit_message="all")
"""


@pytest.fixture(params=["hub", "xet_hub"])
def either_hub(request: pytest.FixtureRequest) -> TestHub:
    """Both modes, one after the other."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with CONTENTS."""
    made = tmp_path_factory.mktemp("folder") / "model"
    for name, content in CONTENTS.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    return made


def sent(hub: TestHub) -> int:
    """Bytes of large files that reached the Hub or its Xet store."""
    return hub.xet.stored_bytes() if hub.xet else sum(line.bytes_in for line in hub.requests("^PUT .*/lfs/"))


def test_folder_goes_up_and_comes_down(either_hub: TestHub, folder: Path, tmp_path: Path) -> None:
    hub = either_hub
    hub.python(UPLOAD, folder)
    assert hub.files("me/model") == SHA256
    hub.python('snapshot_download("me/model", local_dir=sys.argv[1])', tmp_path)
    for name, content in CONTENTS.items():
        assert (tmp_path / name).read_bytes() == content
        assert hub.read("me/model", name) == content
    assert [moment.what for moment in hub.history("me/model")] == ["commit", "commit"]
    assert hub.public_files("me/model") == []


def test_same_folder_again_sends_nothing(either_hub: TestHub, folder: Path) -> None:
    hub = either_hub
    hub.python(UPLOAD, folder)
    before, head = sent(hub), hub.repos["me/model"].branches["main"]
    hub.python(UPLOAD, folder)
    assert sent(hub) == before
    assert hub.files("me/model") == SHA256
    assert hub.repos["me/model"].branches["main"] == head


def test_repo_that_was_put_there_is_read(either_hub: TestHub, folder: Path, tmp_path: Path) -> None:
    hub = either_hub
    commit = hub.add_repo("org/model", folder).branches["main"]
    code = """
    path = hf_hub_download("org/model", sys.argv[2])
    facts = api.verify_repo_checksums("org/model", local_dir=sys.argv[1])
    info = api.model_info("org/model", files_metadata=True)
    files = [f for f in api.list_repo_tree("org/model", recursive=True) if isinstance(f, hf_api.RepoFile)]
    tree = {f.path: f.lfs.sha256 for f in files if f.lfs}
    say([path, facts.checked_count, info.sha, info.private, [s.rfilename for s in info.siblings], tree])
    """
    path, checked, sha, private, siblings, tree = hub.ask(code, folder, FIRST, token=None)
    assert Path(path).read_bytes() == CONTENTS[FIRST]
    assert commit == sha == Path(path).parent.name
    assert checked == len(SHA256)
    assert not private
    assert set(siblings) == {".gitattributes", *SHA256}
    assert tree == {name: SHA256[name] for name in (FIRST, SECOND)}
    large = [line for line in hub.requests(f"GET .*{FIRST}") if line.bytes_out == len(CONTENTS[FIRST])]
    assert len(large) == (0 if hub.xet else 1)  # in Xet mode it went around HTTP


def test_wrong_local_file_fails_the_checksums(hub: TestHub, folder: Path, tmp_path: Path) -> None:
    hub.add_repo("org/model", folder)
    hub.checkout("org/model", tmp_path / "copy")
    (tmp_path / "copy" / SECOND).unlink()
    (tmp_path / "copy" / SECOND).write_bytes(CONTENTS[SECOND][::-1])
    code = """
    facts = api.verify_repo_checksums("org/model", local_dir=sys.argv[1])
    say([mismatch["path"] for mismatch in facts.mismatches])
    """
    assert hub.ask(code, tmp_path / "copy") == [SECOND]


STAGING = """
api.create_repo("me/model", private=True)
api.create_branch("me/model", branch="staging/one")
for name in sys.argv[2:]:
    path = f"{sys.argv[1]}/{name}"
    api.upload_file(repo_id="me/model", path_or_fileobj=path, path_in_repo=name, revision="staging/one")
"""
COPY = """
main = api.model_info("me/model").sha
copies = [CommitOperationCopy(name, "weights/" + name, src_revision="staging/one") for name in sys.argv[2:]]
done = api.create_commit("me/model", [*copies, CommitOperationAdd("config.json", b"{}")], commit_message="one",
                         parent_commit=main)
api.delete_branch("me/model", branch="staging/one")
api.create_tag("me/model", tag="v1")
refs = api.list_repo_refs("me/model")
say([done.oid, [b.name for b in refs.branches], {t.name: t.target_commit for t in refs.tags}])
"""


def test_copy_from_a_branch_moves_no_bytes(either_hub: TestHub, folder: Path) -> None:
    hub = either_hub
    hub.python(STAGING, folder, FIRST, SECOND)
    staged = hub.files("me/model", "staging/one")
    assert staged == {FIRST: SHA256[FIRST], SECOND: SHA256[SECOND]}
    assert hub.files("me/model") == {}
    before = sent(hub), hub.downloaded_bytes
    oid, branches, tags = hub.ask(COPY, folder, FIRST, SECOND)
    assert (sent(hub), hub.downloaded_bytes) == before
    assert set(hub.files("me/model")) == {f"weights/{FIRST}", f"weights/{SECOND}", "config.json"}
    assert branches == ["main"]
    assert tags == {"v1": oid}
    assert hub.files("me/model", "v1") == hub.files("me/model", oid) == hub.files("me/model")


def test_small_file_is_copied_through_the_client(hub: TestHub) -> None:
    code = """
    api.create_repo("me/model")
    api.create_branch("me/model", branch="side")
    add, copy = CommitOperationAdd("a.json", b"{}"), CommitOperationCopy("a.json", "b.json", src_revision="side")
    api.create_commit("me/model", [add], commit_message="one", revision="side")
    api.create_commit("me/model", [copy], commit_message="two")
    """
    hub.python(code)
    assert hub.files("me/model") == {"b.json": hashlib.sha256(b"{}").hexdigest()}


def test_every_commit_keeps_its_tree(hub: TestHub) -> None:
    code = """
    api.create_repo("me/model")
    upload = lambda text: api.upload_file(repo_id="me/model", path_or_fileobj=text, path_in_repo="a.txt").oid
    oids = [upload(b"1"), upload(b"2")]
    api.delete_file("a.txt", "me/model")
    texts = [open(hf_hub_download("me/model", "a.txt", revision=oid)).read() for oid in oids]
    say([oids, texts, api.file_exists("me/model", "a.txt"), [c.commit_id for c in api.list_repo_commits("me/model")]])
    """
    oids, texts, exists, commits = hub.ask(code)
    assert texts == ["1", "2"]
    assert not exists
    assert commits[1:3] == oids[::-1]
    assert hub.read("me/model", "a.txt", oids[0]) == b"1"


def test_wrong_parent_and_unknown_object_are_refused(hub: TestHub) -> None:
    code = """
    api.create_repo("me/model")
    add = CommitOperationAdd("a.txt", b"1")
    answers = [status(api.create_commit, "me/model", [add], commit_message="x", parent_commit="0" * 40),
               status(api.create_repo, "me/model"),
               status(api.model_info, "me/model", revision="nowhere"),
               status(hf_hub_download, "me/model", "missing.txt"),
               status(api.create_branch, "me/model", branch="main"),
               status(api.delete_tag, "me/model", tag="v1")]
    say([answer[:2] for answer in answers])
    """
    assert hub.ask(code) == [
        ["HfHubHTTPError", 412],
        ["HfHubHTTPError", 409],
        ["RevisionNotFoundError", 404],
        ["RemoteEntryNotFoundError", 404],
        ["HfHubHTTPError", 409],
        ["RevisionNotFoundError", 404],
    ]
    assert hub.files("me/model") == {}


def test_long_listing_comes_in_pages(hub: TestHub, folder: Path) -> None:
    hub.page_size = 2
    hub.add_repo("org/model", folder)
    code = """
    say([api.list_repo_files("org/model"), [f.path for f in api.list_repo_tree("org/model", recursive=True)],
         [f.path for f in api.list_repo_tree("org/model", "quantkit")]])
    """
    files, paths, inside = hub.ask(code)
    assert set(files) == {".gitattributes", *SHA256}
    assert paths == sorted({".gitattributes", "quantkit", *SHA256})
    assert inside == ["quantkit/report.json"]
    assert len(hub.requests("/tree/main")) == 4 + 4 + 1  # 7 entries, 2 a page, twice; one folder

"""What is refused before a byte goes up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_standin import TestHub
from push_harness import REPO, push, refused, wanted

from quantkit.errors import BadInput
from quantkit.hub.preflight import check_repo_name, check_sizes, check_token, storage_line

GB = 10**9


@pytest.mark.parametrize("name", ["M", "me/M@main", "me//M", "me/M.git", "me/a--b", "me/", "hub:me/M", "a/b/c", ""])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(BadInput, match=r"owner/name|not an address"):
        check_repo_name(name)
    check_repo_name("me/MiniMax-M2.7-GGUF")


def test_sizes() -> None:
    assert check_sizes({"a": 50 * GB, "b": 1}) == []
    (line,) = check_sizes({"a": 50 * GB + 1, "b": 1})
    assert line.startswith("a: ")
    with pytest.raises(BadInput, match=r"b: has 500\.0 GB"):
        check_sizes({"a": 1, "b": 500 * GB + 1})


def test_storage_is_free_up_to_a_limit() -> None:
    assert storage_line(REPO, 100 * GB, {}) is None
    assert storage_line(REPO, 101 * GB, {"isPro": True}) is None
    assert "paid plan" in str(storage_line(REPO, 101 * GB, {"isPro": False}))


def account(role: str = "write", **token: object) -> dict:
    return {
        "name": "me",
        "orgs": [{"name": "us", "roleInOrg": "read"}],
        "auth": {"accessToken": {"role": role} | token},
    }


def scope(name: str, *permissions: str) -> dict:
    return {"entity": {"type": "user", "name": name}, "permissions": list(permissions)}


REFUSED = [
    ("me/M", account("read"), "only read"),
    ("you/M", account(), "neither you nor a member"),
    ("us/M", account(), "role read in us"),
    ("me/M", account("fineGrained", fineGrained={"scoped": [scope("me", "repo.content.read")]}), "no write access"),
    ("me/M", account("fineGrained", fineGrained={"scoped": [scope("me/Other", "repo.write")]}), "no write access"),
]
ALLOWED = [
    ("me/M", account()),
    ("me/M", account("fineGrained", fineGrained={"scoped": [scope("me", "repo.write")]})),
    ("me/M", account("fineGrained", fineGrained={"scoped": [scope("me/M", "repo.write")]})),
    ("me/M", account("fineGrained")),
    ("me/M", {"name": "me"}),
    ("us/M", {"name": "me", "orgs": [{"name": "us"}]}),
]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What the Hub says of the account."""
    said: dict = {}
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 20)
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda self: said)
    return said


@pytest.mark.parametrize(("repo", "said", "message"), REFUSED)
def test_tokens_that_may_not_write(answer: dict, repo: str, said: dict, message: str) -> None:
    answer |= said
    with pytest.raises(BadInput, match=message):
        check_token(repo)


@pytest.mark.parametrize(("repo", "said"), ALLOWED)
def test_tokens_that_may_write_or_do_not_say(answer: dict, repo: str, said: dict) -> None:
    answer |= said
    assert check_token(repo) == said


def test_place_taken_on_main_is_refused_before_anything_is_made(lfs_hub: TestHub, tmp_path: Path) -> None:
    other = tmp_path / "other"
    place = next(path for path in wanted() if path.endswith(".gguf"))
    (other / place).parent.mkdir(parents=True)
    (other / place).write_bytes(b"another quantization")
    lfs_hub.add_repo(REPO, other)
    message = refused(tmp_path / "run")
    assert f"{REPO}/{place}" in message
    assert not [one for one in lfs_hub.log if one.method not in ("GET", "HEAD")]
    assert not list((tmp_path / "run").iterdir())


def test_another_quantization_beside_it_stays(lfs_hub: TestHub, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "M-Q8_0.gguf").write_bytes(b"another quantization")
    (other / "README.md").write_text("---\nlicense: mit\n---\nold card\n")
    lfs_hub.add_repo(REPO, other)
    before = lfs_hub.files(REPO)
    push(tmp_path / "run", public=True)
    assert lfs_hub.files(REPO) == before | wanted()
    assert lfs_hub.public_files(REPO) == [{}, before, before | wanted()]


@pytest.mark.parametrize("place", ["LICENSE", "config.json"])
def test_small_files_of_another_quantization_are_not_replaced(lfs_hub: TestHub, tmp_path: Path, place: str) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / place).write_text("of another one")
    lfs_hub.add_repo(REPO, other)
    before = lfs_hub.files(REPO)
    message = refused(tmp_path / "run", small={place: "mine"})
    assert f"{REPO}/{place}" in message
    assert lfs_hub.files(REPO) == before


def test_no_token_enters_the_journal(lfs_hub: TestHub, tmp_path: Path) -> None:
    refused(tmp_path, 1, stop_before="finalize")
    text = (tmp_path / "M.push").read_text()
    assert lfs_hub.write_token not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert {line["path"]: line["sha256"] for line in lines[1:]} == {
        path: sha256 for path, sha256 in wanted().items() if path.endswith(".gguf")
    }

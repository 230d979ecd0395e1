"""Who may see and change what, ranges and conditions, signed links: as the unmodified client meets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub_standin import TestHub
from hub_standin.hub import GIT_ATTRIBUTES

CONTENT = bytes(range(256)) * 40
LOOK = """
from huggingface_hub import get_hf_file_metadata
def look(repo, token):
    options = {"token": token or False}
    add = CommitOperationAdd("a.txt", b"1")
    answers = [status(api.model_info, repo, **options),
               status(get_hf_file_metadata, hf_hub_url(repo, "model.bin"), **options),
               status(api.create_commit, repo, [add], commit_message="one", **options),
               status(api.create_repo, "me/other-" + repo[3:], **options)]
    return [answer and answer[:2] for answer in answers]
say([look(repo, token) for repo, token in zip(sys.argv[1::2], sys.argv[2::2])])
"""
NOT_FOUND_401, NOT_FOUND_404 = ["RepositoryNotFoundError", 401], ["RepositoryNotFoundError", 404]
GATED_401, GATED_403 = ["GatedRepoError", 401], ["GatedRepoError", 403]
FORBIDDEN, WHO = ["HfHubHTTPError", 403], ["HfHubHTTPError", 401]
# Repository, whose token, what info, file, commit and a new repository answer.
ACCESS = [
    ("me/private", "read", [None, None, FORBIDDEN, FORBIDDEN]),
    ("me/private", "other", [NOT_FOUND_404, NOT_FOUND_404, NOT_FOUND_404, FORBIDDEN]),
    ("me/private", "", [NOT_FOUND_401, NOT_FOUND_401, NOT_FOUND_401, WHO]),
    ("me/private", "wrong", [WHO, WHO, WHO, WHO]),
    ("me/public", "other", [None, None, FORBIDDEN, FORBIDDEN]),
    ("me/public", "", [None, None, WHO, WHO]),
    ("me/gated", "other", [None, GATED_403, FORBIDDEN, FORBIDDEN]),
    ("me/gated", "", [None, GATED_401, WHO, WHO]),
    ("me/missing", "write", [NOT_FOUND_404, NOT_FOUND_404, NOT_FOUND_404, None]),
    ("me/private", "write", [None, None, None, None]),
    ("me/gated", "write", [None, None, None, None]),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    (made / "model.bin").write_bytes(CONTENT)
    return made


def test_access(hub: TestHub, folder: Path) -> None:
    for kind in ("private", "public", "gated"):
        hub.add_repo(f"me/{kind}", folder, private=kind == "private", gated=kind == "gated")
    tokens = {"write": hub.write_token, "read": hub.read_token, "other": hub.other_token, "wrong": "hf_wrong", "": ""}
    pairs = [text for repo, owner, _ in ACCESS for text in (repo, tokens[owner])]
    assert hub.ask(LOOK, *pairs) == [wanted for _, _, wanted in ACCESS]
    assert {line.token for line in hub.requests("models/me/private")} == {"me", "someone", "unknown", None}
    assert hub.read("me/gated", "a.txt") == b"1"


def test_granted_user_reads_a_gated_repo(hub: TestHub, folder: Path) -> None:
    hub.add_repo("me/model", folder, gated=True).granted.add("someone")
    assert (
        hub.ask('say(len(open(hf_hub_download("me/model", "model.bin"), "rb").read()))', token=hub.other_token) == 10240
    )


def test_visibility_and_its_history(hub: TestHub, folder: Path) -> None:
    hub.add_repo("me/model", folder, private=True)
    code = """
    api.update_repo_settings("me/model", visibility="public", gated="auto")
    facts = api.model_info("me/model")
    api.delete_repo("me/model")
    say([facts.private, facts.gated, api.repo_exists("me/model")])
    """
    assert hub.ask(code) == [False, "auto", False]
    moments = hub.history("me/model")
    assert [(m.what, m.private) for m in moments[-4:]] == [
        ("commit", True),
        ("gated", True),
        ("visibility", False),
        ("delete", False),
    ]
    assert [set(moment.files) for moment in moments[:2]] == [{GIT_ATTRIBUTES}, {GIT_ATTRIBUTES, "model.bin"}]
    assert [set(files) for files in hub.public_files("me/model")] == [{"model.bin"}] * 2


RANGES = """
from huggingface_hub.utils import get_session
url = hf_hub_url("org/model", "model.bin")
auth = {"Authorization": "Bearer " + get_token()}
etag = get_hf_file_metadata(url).etag
def get(**headers):
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = get_session().get(url, headers=auth | sent, follow_redirects=True)
    return [answer.status_code, answer.content.hex()[:8], len(answer.content), answer.headers.get("content-range")]
say([get(Range="bytes=2-5"), get(Range="bytes=10236-"), get(Range="bytes=-3"), get(Range="bytes=10240-"),
     get(Range="bytes=0-99999"), get(If_None_Match=f'"{etag}"'), get(If_Match='"x"'),
     get(Range="bytes=2-5", If_Range='"x"')])
"""


@pytest.mark.parametrize("signed", [False, True], ids=["direct", "signed"])
def test_ranges_and_conditions(hub: TestHub, folder: Path, signed: bool) -> None:
    hub.add_repo("org/model", folder)
    hub.sign_links = 60.0 if signed else None
    assert hub.ask(RANGES) == [
        [206, "02030405", 4, "bytes 2-5/10240"],
        [206, "fcfdfeff", 4, "bytes 10236-10239/10240"],
        [206, "fdfeff", 3, "bytes 10237-10239/10240"],
        [416, "", 0, "bytes */10240"],
        [206, "00010203", 10240, "bytes 0-10239/10240"],
        [304, "", 0, None],
        [412, hub_error("Precondition failed"), 32, None],
        [200, "00010203", 10240, None],
    ]
    assert hub.downloaded_bytes == 4 + 4 + 3 + 10240 + 10240
    assert {line.host for line in hub.log if line.bytes_out == 4} == {"content" if signed else "hub"}


def hub_error(message: str) -> str:
    """The first bytes of an error's JSON in hexadecimal digits."""
    return f'{{"error": "{message}"}}'.encode().hex()[:8]


def test_signed_links_expire_and_never_get_the_token(hub: TestHub, folder: Path) -> None:
    hub.add_repo("org/model", folder)
    hub.sign_links = 0.4
    code = """
    import time
    from huggingface_hub.utils import get_session
    url = hf_hub_url("org/model", "model.bin")
    link = get_hf_file_metadata(url).location
    before = get_session().get(link).status_code
    time.sleep(0.5)
    after, forged = (get_session().get(text).status_code for text in (link, link.replace("Expires=", "Expires=9")))
    say([before, after, forged, len(open(hf_hub_download("org/model", "model.bin"), "rb").read())])
    """
    assert hub.ask(code) == [200, 403, 403, len(CONTENT)]
    assert {line.token for line in hub.log if line.host == "content"} == {None}
    assert {line.token for line in hub.requests("HEAD .*/resolve/")} == {"me"}


def test_no_setting_of_the_caller_reaches_clients(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "https_proxy", "HF_TOKEN_PATH"):
        monkeypatch.setenv(name, "1")
    environment = hub.environment(token=None)
    assert not {"HF_HUB_OFFLINE", "HTTP_PROXY", "https_proxy", "HF_TOKEN_PATH", "HF_TOKEN"} & set(environment)
    assert environment["HF_ENDPOINT"] == hub.url


def test_quantkit_runs_as_a_client_process(hub: TestHub) -> None:
    done = hub.run("--help", timeout=60)
    assert done.returncode == 0
    assert "quantkit" in done.stdout

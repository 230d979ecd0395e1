"""Which failures of the Hub are tried again, what the others are told as, and that no token is in any of it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_standin import Fault, TestHub
from huggingface_hub.utils import are_progress_bars_disabled

from quantkit.errors import BadInput, QuantkitError, RunFailed
from quantkit.hub import client

TOKEN = "hf_" + "aB3" * 11


@pytest.fixture
def waits() -> list[float]:
    return []


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def action() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return action


def test_trouble_on_the_way_is_tried_again(waits: list[float]) -> None:
    action = failing(ConnectionResetError(), TimeoutError(), RuntimeError("CAS service error: broken pipe"))
    assert client.call("me/x", action, sleep=waits.append) == "done"
    assert len(waits) == 3
    for wait, longest in zip(waits, (1, 2, 4), strict=True):
        assert 0.75 * longest <= wait <= longest


def test_waits_are_capped_and_end(waits: list[float]) -> None:
    with pytest.raises(RunFailed, match=r"^me/x: .*repeat the command to go on$") as failed:
        client.call("me/x", failing(*[ConnectionError("gone")] * 9), attempts=9, sleep=waits.append)
    assert failed.value.exit_code == 1
    assert len(waits) == 8
    assert max(waits) <= 30


def test_errors_of_both_http_libraries() -> None:
    import httpx
    import httpx2

    for library in (httpx, httpx2):
        for error in (library.ReadTimeout("slow"), library.RemoteProtocolError("cut"), library.ConnectError("no")):
            assert client.call("me/x", failing(error), sleep=lambda _: None) == "done"
        with pytest.raises(BadInput, match="HF_ENDPOINT"):
            client.call("me/x", failing(library.UnsupportedProtocol("no scheme")))


def test_a_mistake_of_the_program_is_not_hidden(waits: list[float]) -> None:
    with pytest.raises(KeyError):
        client.call("me/x", failing(KeyError("wrong")), sleep=waits.append)
    with pytest.raises(BadInput, match="ours"):
        client.call("me/x", failing(BadInput("ours")), sleep=waits.append)
    assert waits == []


def test_a_full_disk_is_not_the_network(waits: list[float]) -> None:
    with pytest.raises(QuantkitError, match=r"me/x: /disk No space left on device; mend that") as failed:
        client.call("me/x", failing(OSError(errno.ENOSPC, "No space left on device", "/disk")), sleep=waits.append)
    assert type(failed.value) is QuantkitError
    assert waits == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("400", "not valid"),
        ("401", "hf auth login"),
        ("403", "this token may not do that"),
        ("404", "no such file"),
        ("409", "choose another name"),
        ("412", "moved meanwhile"),
        ("413", "smaller files"),
        ("422", "not valid"),
        ("quota", "larger plan"),
    ],
)
def test_what_a_repetition_cannot_mend(hub: TestHub, client_of: Callable[..., None], kind: str, words: str) -> None:
    hub.add_repo("me/x")
    client_of(hub)
    hub.fail(Fault("GET /api/models/me/x", kind, times=99))
    with pytest.raises(BadInput, match=words) as refused:
        client.call("me/x", lambda: client.api().model_info("me/x"))
    assert str(refused.value).startswith("me/x: ")
    assert "\n" not in str(refused.value)
    assert len(hub.requests("GET /api/models/me/x")) == 1


@pytest.mark.parametrize("kind", ["500", "502", "503", "504", "429", "cut", "lost"])
def test_what_passes(hub: TestHub, client_of: Callable[..., None], kind: str) -> None:
    hub.add_repo("me/x")
    client_of(hub)
    hub.fail(Fault("GET /api/models/me/x", kind, times=2))
    assert client.call("me/x", lambda: client.api().model_info("me/x")).id == "me/x"


def test_the_wait_that_the_server_asks_for(hub: TestHub, client_of: Callable[..., None], waits: list[float]) -> None:
    hub.add_repo("me/x")
    client_of(hub)
    hub.fail(
        Fault("GET /api/models/me/x", "429", retry_after=17), Fault("GET /api/models/me/x", "503", retry_after=999)
    )
    client.call("me/x", lambda: client.api().model_info("me/x"), sleep=waits.append)
    assert waits == [17, 300]


def test_a_repository_that_is_not_there_and_one_that_must_be_asked_for(
    hub: TestHub, client_of: Callable[..., None]
) -> None:
    hub.add_repo("me/secret", private=True)
    client_of(hub, token=hub.other_token)
    for repo in ("me/none", "me/secret"):
        with pytest.raises(BadInput, match="no such repository, or private"):
            client.call(repo, lambda repo=repo: client.api().model_info(repo))


def test_offline(hub: TestHub, client_of: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    client_of(hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE is set"):
        client.call("me/x", lambda: client.api().model_info("me/x"))


@pytest.mark.parametrize(("status", "kind"), [(401, BadInput), (403, BadInput), (503, RunFailed)])
def test_errors_of_hf_xet_carry_their_status_in_words(status: int, kind: type[QuantkitError]) -> None:
    error = RuntimeError(f"Data processing error: HTTP status client error ({status} Whatever) for url (http://c/x)")
    with pytest.raises(kind):
        client.call("me/x", failing(*[error] * 6), sleep=lambda _: None)


@pytest.mark.parametrize(
    "text",
    [
        f"Bearer {TOKEN}",
        f"token={TOKEN}, and so on",
        f"https://user:{TOKEN}@proxy:8080/",
        f"https://cdn/x?Expires=1&Signature={TOKEN}&Key-Pair-Id=K",
        f"x-amz-signature={TOKEN}&x-amz-date=2",
        f"{{'authorization': 'Bearer {TOKEN}'}}",
        f"hf_oauth_{TOKEN[3:]}",
    ],
)
def test_no_token_in_any_text(text: str) -> None:
    assert TOKEN[3:] not in client.redact(text)


def test_tokens_of_any_form_are_known_from_where_they_are_kept(
    hub: TestHub, client_of: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    client_of(hub, token="my own secret")
    (hub.home / "token").write_text("another-one\n")
    assert client.redact("a my own secret b another-one c") == "a [hidden] b [hidden] c"


def test_ordinary_words_stay() -> None:
    text = "hf_hub_download of https://huggingface.co/me/x/resolve/main/model-00001-of-00002.safetensors: hf_xet failed"
    assert client.redact(text) == text


def test_what_a_server_says_is_redacted() -> None:
    with pytest.raises(RunFailed) as failed:
        client.call("me/x", failing(*[OSError(f"GET https://h/x?token=1 with {TOKEN}")] * 2), attempts=2, sleep=id)
    assert TOKEN not in str(failed.value)
    assert "token=1" not in str(failed.value)


def test_quiet_is_over_with_the_last_who_asked_for_it(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("huggingface_hub")
    before = (logger.level, are_progress_bars_disabled())
    first, second = client.quiet(), client.quiet()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert are_progress_bars_disabled()
    assert not logger.isEnabledFor(logging.ERROR)
    second.__exit__(None, None, None)
    assert (logger.level, are_progress_bars_disabled()) == before


def test_the_interface_says_who_we_are(hub: TestHub, client_of: Callable[..., None], tmp_path: Path) -> None:
    client_of(hub)
    assert client.api().endpoint == hub.url
    assert client.api().whoami()["name"] == "me"

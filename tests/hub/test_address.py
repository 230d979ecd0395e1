"""What is an address on the Hub, and what a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit.errors import BadInput
from quantkit.hub.address import DEFAULT_SOURCE, Address, parse_address


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("hub:MiniMaxAI/MiniMax-M2.7", "MiniMaxAI/MiniMax-M2.7", None),
        ("hub:me/model@main", "me/model", "main"),
        ("hub:me/model@refs/pr/3", "me/model", "refs/pr/3"),
        ("me/model", "me/model", None),
        ("me/model@" + "0f" * 20, "me/model", "0f" * 20),
        ("MiniMaxAI/MiniMax-M2.7-GGUF", "MiniMaxAI/MiniMax-M2.7-GGUF", None),
    ],
)
def test_addresses(text: str, repo: str, revision: str | None) -> None:
    assert parse_address(text) == Address(repo, revision)


@pytest.mark.parametrize(
    "text",
    [
        *("model", "a/b/c", "/srv/model", "./model", "../model", "me/model/", "~/model", "me/"),
        *("me/model.gguf", "out/shard.safetensors", "me/a..b", "me/a--b", "me/model@", "me/model@a b", ""),
    ],
)
def test_paths(text: str) -> None:
    assert parse_address(text) is None


def test_a_local_folder_comes_first_unless_the_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "me" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse_address("me/model") is None
    assert parse_address("hub:me/model") == Address("me/model")


@pytest.mark.parametrize("text", ["hub:", "hub:model", "hub:a/b/c", "hub:me/model@", "hub:me/../x", "hub:-me/x"])
def test_a_broken_address_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(BadInput, match="hub:owner/name") as refused:
        parse_address(text)
    assert "\n" not in str(refused.value)


def test_written_as_read() -> None:
    for text in (DEFAULT_SOURCE, "hub:me/model@v1"):
        assert str(parse_address(text)) == text
    assert Address("me/model").name == "model"


def test_names_are_those_that_the_client_allows() -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    for name in ("a", "_", "-a", "a-", "a.", ".a", "a--b", "a..b", "a" * 96, "a b", "é", "a.git"):
        try:
            validate_repo_id(f"me/{name}")
        except HFValidationError:
            assert parse_address(f"me/{name}") is None, name

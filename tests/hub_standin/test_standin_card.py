"""The stand-in's check of a card's metadata."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from hub_standin import TestHub
from hub_standin.card_metadata import check_card

RESULT = {
    "task": {"type": "text-generation"},
    "dataset": {"type": "text", "name": "held-out text"},
    "metrics": [{"type": "perplexity", "value": 5.25, "name": "perplexity"}],
}
GOOD: dict[str, Any] = {
    "license": "other",
    "license_name": "minimax-m2.7-non-commercial",
    "license_link": "LICENSE",
    "base_model": "MiniMaxAI/MiniMax-M2.7",
    "base_model_relation": "quantized",
    "pipeline_tag": "text-generation",
    "tags": ["gguf"],
    "model-index": [{"name": "model", "results": [RESULT]}],
}
FAULTS = [
    ({"license": "modified-mit"}, '"license" must be'),
    ({"license_name": ""}, '"license_name"'),
    ({"license_name": "Not Lower"}, '"license_name"'),
    ({"license_link": "somewhere"}, '"license_link"'),
    ({"base_model": "no id"}, '"base_model"'),
    ({"base_model": ["MiniMaxAI/MiniMax-M2.7", 3]}, '"base_model"'),
    ({"base_model_relation": "quantised"}, '"base_model_relation"'),
    ({"tags": ["a", 1]}, '"tags"'),
    ({"pipeline_tag": ["text-generation"]}, '"pipeline_tag"'),
    ({"model-index": [{"name": "model", "results": [{"task": {}}]}]}, '"model-index"'),
    ({"model-index": {"name": "model"}}, '"model-index"'),
    (
        {"model-index": [{"name": "m", "results": [RESULT | {"metrics": [{"type": "x", "value": float("nan")}]}]}]},
        "finite",
    ),
]


def card(metadata: dict[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(metadata)}---\n# Model\n"


def test_good_card_passes() -> None:
    assert check_card(card(GOOD)) == ([], [])
    assert check_card(card({"license": "mit"})) == ([], [])


@pytest.mark.parametrize(("change", "words"), FAULTS)
def test_fault_is_found(change: dict[str, Any], words: str) -> None:
    errors, _ = check_card(card(GOOD | change))
    assert len(errors) == 1
    assert words in errors[0]


@pytest.mark.parametrize("text", ["# Model\n", "---\n---\n# Model\n"])
def test_card_without_metadata_is_warned_of(text: str) -> None:
    assert check_card(text) == ([], ["empty or missing yaml metadata in repo card"])


@pytest.mark.parametrize(("text", "words"), [("a: [", "not YAML"), ("- a", "not a mapping")])
def test_metadata_must_be_a_mapping_in_yaml(text: str, words: str) -> None:
    assert words in check_card(f"---\n{text}\n---\n")[0][0]


def test_client_is_told(hub: TestHub) -> None:
    code = """
    api.create_repo("me/model")
    def upload(text):
        try:
            api.upload_file(repo_id="me/model", path_or_fileobj=text.encode(), path_in_repo="README.md")
        except ValueError as error:
            return str(error)
    say([upload(text) for text in sys.argv[1:]])
    """
    bad, good = hub.ask(code, card(GOOD | {"license": "modified-mit"}), card(GOOD))
    assert "modified-mit" in bad
    assert good is None
    assert hub.read("me/model", "README.md").decode() == card(GOOD)
    assert len(hub.requests("/commit/")) == 1

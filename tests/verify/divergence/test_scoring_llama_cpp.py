"""Forced scoring on the embedded llama.cpp server, against transformers on the weights that are in the file."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import psutil
import pytest
import torch
from transformers import PreTrainedTokenizerBase
from transformers_reference import logprobs, model_from_gguf

from quantkit.verify.client import Client
from quantkit.verify.divergence.scoring import score_passages
from quantkit.verify.records import Passage, Scores
from quantkit.verify.servers.running import ServerFailed
from quantkit.verify.servers.start import ServerSettings, running

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB, TOP = 4096, 16
# One slot: a step that generates for several at once rounds otherwise (some hundredths of a nat in BF16).
SETTINGS = ServerSettings(context=256, concurrency=1, top=VOCAB, arguments=("--threads", "1"))
ROUNDING = 1e-5  # nats; float32 softmax, printed with all digits
# The server rounds activations to bfloat16, transformers here does not (tests/servers/test_logprobs.py).
MEAN_DIFFERENCE = 0.02

GGUFOf = Callable[[str], Path]


def scored(client: Client, passages: list[Passage], top: int) -> list[Scores]:
    kept: dict[int, Scores] = {}
    score_passages(client, passages, range(len(passages)), VOCAB, top, kept.__setitem__, 2)
    return [kept[number] for number in range(len(passages))]


@pytest.fixture(scope="module")
def client(fixture_gguf: GGUFOf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("llama-cpp")
    with running("llama.cpp", fixture_gguf("bf16"), folder, SETTINGS) as server, Client(server) as client:
        yield client


@pytest.fixture(scope="module")
def whole(client: Client, passages: list[Passage]) -> list[Scores]:
    """The passages with the whole vocabulary at each position."""
    return scored(client, passages, VOCAB)


def test_awkward_tokens_are_there(passages: list[Passage], fixture_tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = fixture_tokenizer.convert_ids_to_tokens(passages[0].ids.tolist())
    assert "[e~[" in tokens[1:-1]
    unfinished = [token for token in passages[0].ids.tolist() if "\ufffd" in fixture_tokenizer.decode([token])]
    assert len(unfinished) > 10


def test_whole_vocabulary_agrees_with_transformers(
    whole: list[Scores], passages: list[Passage], fixture_gguf: GGUFOf, tiny_m2: Path
) -> None:
    model = model_from_gguf([fixture_gguf("bf16")], tiny_m2 / "config.json")
    for scores, passage in zip(whole, passages, strict=True):
        reference = logprobs(model, passage.ids.tolist())[:-1]
        following = torch.from_numpy(passage.ids[1:].astype(np.int64))[:, None]
        actual = reference.gather(1, following)[:, 0].numpy()
        assert np.abs(scores.actual - actual).mean() < MEAN_DIFFERENCE
        assert scores.top.shape == (passage.scored, VOCAB)
        assert (np.sort(scores.top_ids, 1) == np.arange(VOCAB)).all()
        assert (np.diff(scores.top, axis=1) <= 0).all()
        assert np.abs(np.exp(scores.top.astype(np.float64)).sum(1) - 1).max() < 1e-3
        best = reference.gather(1, torch.from_numpy(scores.top_ids[:, :1].astype(np.int64)))[:, 0].numpy()
        assert np.abs(scores.top[:, 0] - best).mean() < MEAN_DIFFERENCE


def test_few_and_all_tokens_give_the_same_numbers(client: Client, whole: list[Scores], passages: list[Passage]) -> None:
    """With few, a token in the middle of a character, which the server lists nothing for, takes another way."""
    for scores, all_of_it in zip(scored(client, passages, TOP), whole, strict=True):
        assert scores.top.shape[1] == TOP
        assert np.isfinite(scores.actual).all()
        assert np.abs(scores.actual - all_of_it.actual).max() < ROUNDING
        assert np.abs(scores.top - all_of_it.top[:, :TOP]).max() < ROUNDING


def test_model_with_nan_is_nan(fixture_gguf: GGUFOf, passages: list[Passage], tmp_path: Path) -> None:
    path = Path(shutil.copy(fixture_gguf("bf16"), tmp_path / "nan.gguf"))
    (norm,) = (tensor for tensor in gguf.GGUFReader(path, "r+").tensors if tensor.name == "output_norm.weight")
    norm.data[3] = np.nan
    norm.data.flush()
    short = [Passage("x", "x", passages[0].ids[:6])]
    with running("llama.cpp", path, tmp_path / "server", SETTINGS) as server, Client(server) as client:
        for top in (TOP, VOCAB):
            (scores,) = scored(client, short, top)
            assert np.isnan(scores.actual).all()
            assert np.isnan(scores.top).all()


def test_server_that_dies_between_passages(fixture_gguf: GGUFOf, passages: list[Passage], tmp_path: Path) -> None:
    """What was scored before is kept, and the error is said at once, with the log."""
    kept: list[int] = []

    def keep(number: int, scores: Scores) -> None:
        kept.append(number)
        for process in psutil.Process().children(recursive=True):
            if "embedded_llama.py" in " ".join(process.cmdline()) and str(tmp_path) in " ".join(process.cmdline()):
                process.kill()

    model = Path(shutil.copy(fixture_gguf("q8_0"), tmp_path / "model.gguf"))
    with (
        running("llama.cpp", model, tmp_path / "server", SETTINGS) as server,
        Client(server) as client,
        pytest.raises(ServerFailed, match=r"ended while it was being asked; .*end of its log"),
    ):
        score_passages(client, passages, [0, 1, 2], VOCAB, TOP, keep, 1)
    assert kept == [0]

"""Scores of the FP8 fixture from a real vLLM, one start, against transformers on the same weights.

Costs about 20 s of processor time, nearly all of it vLLM's start.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers_reference import logprobs, model_from_checkpoint

from quantkit.errors import BadInput
from quantkit.verify.client import Client
from quantkit.verify.divergence.scoring import score_passages
from quantkit.verify.records import Passage, Scores
from quantkit.verify.servers.start import ServerSettings, running

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.full]  # whole verifications score with it too

VOCAB, TOP = 4096, 16
SETTINGS = ServerSettings(context=512, concurrency=2, top=TOP)
# vLLM computes in bfloat16. On dialogues that moves log p by 0.001 to 0.006 nat on average (tests/servers/test_vllm.py
# has the same bound), at tokens with log p below -3 by 0.015 to 0.035: the awkward text has hardly any others.
# Reading a neighbour's entry would be off by nats.
MEAN_DIFFERENCE, AWKWARD_DIFFERENCE = 0.01, 0.05


def scored(client: Client, passages: list[Passage], top: int = TOP) -> list[Scores]:
    kept: dict[int, Scores] = {}
    score_passages(client, passages, range(len(passages)), VOCAB, top, kept.__setitem__, SETTINGS.concurrency)
    return [kept[number] for number in range(len(passages))]


@pytest.fixture(scope="module")
def client(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with running("vllm", tiny_m2, tmp_path_factory.mktemp("vllm"), SETTINGS) as server, Client(server) as client:
        yield client


def test_agrees_with_transformers(client: Client, passages: list[Passage], tiny_m2: Path) -> None:
    model = model_from_checkpoint(tiny_m2)
    bounds = [AWKWARD_DIFFERENCE, *[MEAN_DIFFERENCE] * (len(passages) - 1)]
    for scores, passage, bound in zip(scored(client, passages), passages, bounds, strict=True):
        reference = logprobs(model, passage.ids.tolist())[:-1]
        following = torch.from_numpy(passage.ids[1:].astype(np.int64))[:, None]
        difference = np.abs(scores.actual - reference.gather(1, following)[:, 0].numpy())
        assert difference.mean() < bound
        named = reference.gather(1, torch.from_numpy(scores.top_ids.astype(np.int64))).numpy()
        best = reference.topk(TOP).values.numpy()
        assert scores.top.shape == (passage.scored, TOP)
        assert np.median(np.abs(scores.top - named)) < AWKWARD_DIFFERENCE
        assert np.median(np.abs(scores.top - best)) < AWKWARD_DIFFERENCE
        assert (np.diff(scores.top, axis=1) <= 0).all()


def test_more_logprobs_than_it_was_started_for(client: Client, passages: list[Passage]) -> None:
    with pytest.raises(BadInput, match=rf"greater than max allowed: {TOP}.*--max-logprobs 20"):
        scored(client, passages, 20)


def test_passage_that_just_fits_and_one_that_does_not(client: Client) -> None:
    context = client.server.context
    assert context == SETTINGS.context
    (scores,) = scored(client, [Passage("x", "long", np.arange(context - 1, dtype=np.int32) + 100)], 1)
    assert np.isfinite(scores.actual).all()
    with pytest.raises(BadInput, match="long: 512 tokens need a context of 513"):
        scored(client, [Passage("x", "long", np.arange(context, dtype=np.int32) + 100)], 1)


@pytest.mark.full
def test_model_with_nan_is_nan(tiny_m2: Path, passages: list[Passage], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_m2, tmp_path / "checkpoint"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    shard = folder / index["model.norm.weight"]
    tensors = load_file(shard)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, shard, metadata={"format": "pt"})
    with running("vllm", folder, tmp_path / "server", SETTINGS) as server, Client(server) as client:
        (scores,) = scored(client, passages[:1])
    assert np.isnan(scores.actual).all()
    assert np.isnan(scores.top).all()

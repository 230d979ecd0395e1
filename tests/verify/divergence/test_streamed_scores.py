"""Scores from the streamed pass: those of transformers on the same weights, whatever file these are in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import Damage
from integer_reference import model_from_integers
from safetensors.torch import load_file
from streamed_models import LENGTH, QuantizedModels
from transformers import MiniMaxM2ForCausalLM
from transformers_reference import logprobs, model_from_checkpoint, model_from_gguf

from quantkit.errors import BadInput
from quantkit.forward import embedding
from quantkit.verify.divergence.streamed import default_top, run_passages, score_streamed
from quantkit.verify.records import Passage, Scores

VOCAB = 4096
SCALE = "model.layers.1.self_attn.o_proj.weight_scale_inv"
EXPERT_SCALE = "model.layers.1.block_sparse_moe.experts.3.w2.weight_scale_inv"

Model = MiniMaxM2ForCausalLM


@pytest.fixture(scope="module")
def models(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModels:
    return QuantizedModels(tiny_m2, tmp_path_factory.getbasetemp() / "streamed_models")


@pytest.fixture(scope="module")
def passages(models: QuantizedModels) -> list[Passage]:
    """Of different lengths, so that they are padded."""
    found = models.passages()
    return [found[0], Passage("code", "short", found[1].ids[:70]), *found[2:]]


@pytest.fixture(scope="module")
def expected(models: QuantizedModels, passages: list[Passage]) -> list[torch.Tensor]:
    model = model_from_checkpoint(models.source)
    return [logprobs(model, passage.ids.tolist())[:-1] for passage in passages]


def check(found: list[Scores], passages: list[Passage], rows: list[torch.Tensor], top: int) -> None:
    """Hold scores against whole rows of log-probabilities [M, V]."""
    for scores, passage, row in zip(found, passages, rows, strict=True):
        assert scores.actual.shape == (passage.scored,)
        assert scores.top.shape == scores.top_ids.shape == (passage.scored, top)
        wanted = row.gather(1, torch.from_numpy(passage.ids[1:].astype(np.int64))[:, None])[:, 0]
        assert np.abs(scores.actual - wanted.numpy()).max() < 1e-4
        # The same tokens are best but where two are as good; each has its own log-probability.
        assert np.abs(scores.top - row.topk(top).values.numpy()).max() < 1e-4
        named = row.gather(1, torch.from_numpy(scores.top_ids.astype(np.int64)))
        assert np.abs(scores.top - named.numpy()).max() < 1e-4
        assert (np.diff(scores.top, axis=1) <= 0).all()
        assert all(len(set(ids)) == top for ids in scores.top_ids.tolist())


KINDS: dict[str, Callable[[QuantizedModels, Path], tuple[Path, Model]]] = {
    kind: lambda models, work, kind=kind: (models.int4(kind), model_from_integers(models.int4(kind), work / kind))
    for kind in ("awq", "gptq", "rtn")
} | {
    mix: lambda models, work, mix=mix: (
        models.gguf(mix),
        model_from_gguf([models.gguf(mix)], models.source / "config.json"),
    )
    for mix in ("q8_0", "q4_k_m")
}


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_models_are_those_of_transformers(
    models: QuantizedModels, passages: list[Passage], expected: list[torch.Tensor], kind: str, tmp_path: Path
) -> None:
    path, model = KINDS[kind](models, tmp_path)
    rows = [logprobs(model, passage.ids.tolist())[:-1] for passage in passages]
    check(score_streamed(path, passages, top=50, quiet=True), passages, rows, 50)
    # As the tolerance means something only when the unquantized model misses it:
    assert max((row - other).abs().max() for row, other in zip(rows, expected, strict=True)) > 0.02


@pytest.mark.parametrize("top", [1, 128, VOCAB, None])
def test_the_original_is_transformers(
    models: QuantizedModels, passages: list[Passage], expected: list[torch.Tensor], top: int | None
) -> None:
    """The fixture's vocabulary is small enough to be scored as a whole unless told otherwise."""
    found = score_streamed(models.source, passages, top=top, quiet=True)
    check(found, passages, expected, VOCAB if top is None else top)
    if top in (VOCAB, None):
        assert all((np.sort(scores.top_ids, 1) == np.arange(VOCAB)).all() for scores in found)


@pytest.mark.parametrize("top", [7, 700, VOCAB])
def test_parts_of_the_vocabulary_and_of_the_tokens(
    models: QuantizedModels,
    passages: list[Passage],
    expected: list[torch.Tensor],
    top: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedding, "VOCABULARY_ROWS", 600)
    monkeypatch.setattr(embedding, "TOKEN_ROWS", 100)
    check(score_streamed(models.source, passages, top=top, quiet=True), passages, expected, top)


def test_whole_rows_of_chosen_positions(
    models: QuantizedModels, passages: list[Passage], expected: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that llama-perplexity scores, in pieces of bounded memory; and scores of the same pass."""
    monkeypatch.setattr(embedding, "VOCABULARY_ROWS", 600)
    monkeypatch.setattr(embedding, "ROWS_BYTES", 50 * VOCAB * 4)
    positions = [range(len(passage.ids) // 2, len(passage.ids) - 1) for passage in passages]
    with run_passages(models.source, passages, top=5, quiet=True) as finished:
        parts = list(finished.full_rows(positions))
        check(finished.scores(), passages, expected, 5)
    assert all(part.dtype == np.float32 and len(part) <= 50 for part in parts)
    wanted = torch.cat([row[places.start : places.stop] for row, places in zip(expected, positions, strict=True)])
    found = np.concatenate(parts)
    assert found.shape == (sum(map(len, positions)), VOCAB)
    assert np.abs(found - wanted.numpy()).max() < 1e-4


def test_what_is_kept_where_nobody_said() -> None:
    assert [default_top(size) for size in (4096, 8192, 8193, 200_064)] == [4096, 8192, 1024, 1024]


@pytest.fixture
def damage(tiny_m2: Path, tmp_path: Path) -> Damage:
    return Damage(Path(shutil.copytree(tiny_m2, tmp_path / "checkpoint")))


def overflow(damage: Damage, scale: str) -> None:
    """Make the block scales so large that sums over a row are infinite, the weights themselves not."""
    damage.replace(scale, torch.full_like(load_file(damage.shard_of(scale))[scale], 5e35))


def test_some_tokens_that_are_not_finite(damage: Damage, passages: list[Passage]) -> None:
    """Those that one expert got are NaN, everything else is a number."""
    overflow(damage, EXPERT_SCALE)
    with run_passages(damage.folder, passages, top=3, quiet=True) as finished:
        scores = finished.scores()
        rows = np.concatenate(list(finished.full_rows([range(len(passage.ids) - 1) for passage in passages])))
    actual = np.concatenate([one.actual for one in scores])
    broken = np.isnan(actual)
    assert 0.02 < broken.mean() < 0.98
    assert np.isfinite(actual[~broken]).all()
    np.testing.assert_array_equal(np.isnan(np.concatenate([one.top for one in scores])).all(1), broken)
    np.testing.assert_array_equal(np.isnan(rows).all(1), broken)


def test_no_token_that_is_finite(damage: Damage, passages: list[Passage]) -> None:
    """The pass ends early and says so in the scores."""
    overflow(damage, SCALE)
    scores = score_streamed(damage.folder, passages, quiet=True)
    assert all(np.isnan(one.actual).all() and np.isnan(one.top).all() for one in scores)
    assert [len(one.actual) for one in scores] == [passage.scored for passage in passages]


BAD = {
    "no tokens": (Passage("code", "x", np.zeros(0, np.int32)), "text code/x: 0 tokens, nothing can be scored"),
    "one token": (Passage("code", "x", np.zeros(1, np.int32)), "text code/x: 1 tokens, nothing can be scored"),
    "unknown token": (Passage("code", "x", np.full(9, VOCAB, np.int32)), "outside of the vocabulary"),
    "too long": (Passage("code", "x", np.zeros(4097, np.int32)), "text code/x: 4097 tokens"),
}


@pytest.mark.parametrize("bad", BAD)
def test_passages_that_cannot_be_scored(tiny_m2: Path, bad: str) -> None:
    passage, says = BAD[bad]
    good = Passage("code", "good", np.arange(LENGTH, dtype=np.int32))
    with pytest.raises(BadInput) as error:
        score_streamed(tiny_m2, [good, passage], quiet=True)
    assert says in str(error.value)


def test_nothing_to_score(tiny_m2: Path) -> None:
    with pytest.raises(BadInput, match="no text to score"):
        score_streamed(tiny_m2, [], quiet=True)


def test_memory_that_does_not_hold_it(tiny_m2: Path) -> None:
    passage = Passage("code", "good", np.arange(LENGTH, dtype=np.int32))
    with pytest.raises(BadInput, match="--memory"):
        score_streamed(tiny_m2, [passage], memory=10**6, quiet=True)

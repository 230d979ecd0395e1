"""The streamed forward against transformers' MiniMaxM2ForCausalLM, which holds the whole model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from streaming import Streaming
from transformers import AutoTokenizer, MiniMaxM2ForCausalLM
from transformers_reference import model_from_checkpoint

from quantkit.forward.documents import Documents
from quantkit.forward.embedding import log_probabilities, logits

TOKENS = 1536


@pytest.fixture(scope="module")
def ids(tiny_m2: Path) -> np.ndarray:
    text = (tiny_m2 / "heldout" / "text_code.txt").read_text()
    return np.array(AutoTokenizer.from_pretrained(tiny_m2)(text)["input_ids"][:TOKENS], np.int32)


@pytest.fixture(scope="module")
def whole(tiny_m2: Path) -> MiniMaxM2ForCausalLM:
    return model_from_checkpoint(tiny_m2)


# Lengths of documents: equal ones, very different ones (padded in a batch), a single one, single tokens.
LAYOUTS = {
    "equal": [256] * 6,
    "padded": [7, 300, 31, 30, 200, 8, 460, 500],
    "one": [TOKENS],
    "tokens": [1, 1, 1533, 1],
}


def documents_of(ids: np.ndarray, lengths: list[int]) -> Documents:
    assert sum(lengths) == TOKENS
    return Documents(ids, np.cumsum([0, *lengths]))


@torch.no_grad()
def reference(whole: MiniMaxM2ForCausalLM, documents: Documents) -> torch.Tensor:
    parts = zip(documents.starts, documents.starts[1:], strict=False)
    return torch.cat([whole(torch.from_numpy(documents.ids[a:b]).long()[None]).logits[0] for a, b in parts])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "file"])
def test_logits_are_those_of_the_whole_model(
    streaming: Streaming, whole: MiniMaxM2ForCausalLM, ids: np.ndarray, layout: str, in_memory: bool
) -> None:
    documents = documents_of(ids, LAYOUTS[layout])
    expected = reference(whole, documents)
    with streaming(documents, in_memory=in_memory) as forward:
        ours = logits(forward.weights, forward.states.residual, torch.arange(TOKENS))
    spread = expected.max() - expected.min()
    assert (ours - expected).abs().max() < 1e-5 * spread
    # As the tolerance means something only when wrong models miss it:
    assert (ours - expected.roll(1, 0)).abs().max() > 0.1 * spread


def test_packed_rows_are_those_of_transformers_with_positions_that_start_again(
    streaming: Streaming, whole: MiniMaxM2ForCausalLM, ids: np.ndarray
) -> None:
    documents = documents_of(ids, [512, 512, 512])
    positions = torch.arange(512).repeat(3)[None]
    with torch.no_grad():
        expected = whole(torch.from_numpy(ids).long()[None], position_ids=positions, use_cache=False).logits[0]
    with streaming(documents) as forward:
        ours = logits(forward.weights, forward.states.residual, torch.arange(TOKENS))
    assert (ours - expected).abs().max() < 1e-5 * (expected.max() - expected.min())


def test_log_probabilities_are_those_of_the_whole_vocabulary_at_once(
    streaming: Streaming, whole: MiniMaxM2ForCausalLM, ids: np.ndarray
) -> None:
    documents = documents_of(ids, [TOKENS])
    expected = torch.log_softmax(reference(whole, documents).double(), -1)
    rows, targets = np.arange(TOKENS - 1), ids[1:].astype(np.int64)
    with streaming(documents) as forward:
        ours = log_probabilities(forward.weights, forward.states.residual, rows, targets)
    wanted = expected[torch.from_numpy(rows), torch.from_numpy(targets)].numpy()
    assert np.abs(ours - wanted).max() < 2e-4
    assert np.exp(-ours.mean()) == pytest.approx(np.exp(-wanted.mean()), rel=1e-5)


def test_bfloat16_is_near_and_no_nearer_than_its_precision_allows(
    streaming: Streaming, whole: MiniMaxM2ForCausalLM, ids: np.ndarray
) -> None:
    documents = documents_of(ids, [256] * 6)
    expected = reference(whole, documents)
    with streaming(documents, dtype=torch.bfloat16) as forward:
        ours = logits(forward.weights, forward.states.residual, torch.arange(TOKENS))
    error = (ours - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 1e-4 < error < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_do_not_change_a_bit(streaming: Streaming, ids: np.ndarray, dtype: torch.dtype) -> None:
    documents = documents_of(ids, LAYOUTS["padded"])
    results = []
    for workers in (1, 2, 5):
        with streaming(documents, dtype=dtype, workers=workers) as forward:
            results.append(forward.states.residual.tensor.clone())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])

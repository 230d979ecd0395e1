"""Which tokens an expert sees: those that transformers routes to it, then those next in affinity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from streaming import Streaming
from transformers import AutoTokenizer
from transformers_reference import model_from_checkpoint

from quantkit.forward.documents import Documents
from quantkit.forward.routing import LayerRouting, route
from quantkit.forward.streamed import StreamedForward

LENGTHS = [300, 7, 1, 128, 200, 364]
TOKENS = sum(LENGTHS)
LAYERS, EXPERTS, USED = 4, 16, 4


@dataclass(frozen=True)
class Reference:
    """transformers' router per layer: logits [T, E], chosen experts [T, k] and their weights [T, k]."""

    logits: list[torch.Tensor]
    chosen: list[torch.Tensor]
    weights: list[torch.Tensor]


@pytest.fixture(scope="module")
def documents(tiny_m2: Path) -> Documents:
    text = (tiny_m2 / "heldout" / "text_code.txt").read_text()
    ids = np.array(AutoTokenizer.from_pretrained(tiny_m2)(text)["input_ids"][:TOKENS], np.int32)
    return Documents(ids, np.cumsum([0, *LENGTHS]))


@pytest.fixture(scope="module")
def reference(tiny_m2: Path, documents: Documents) -> Reference:
    model = model_from_checkpoint(tiny_m2)
    seen: list[list[tuple[torch.Tensor, ...]]] = [[] for _ in range(LAYERS)]
    for number, layer in enumerate(model.model.layers):
        layer.mlp.gate.register_forward_hook(lambda module, args, output, number=number: seen[number].append(output))
    with torch.no_grad():
        for begin, end in zip(documents.starts, documents.starts[1:], strict=False):
            model(torch.from_numpy(documents.ids[begin:end]).long()[None])
    columns = [[torch.cat(parts) for parts in zip(*layer, strict=True)] for layer in seen]
    return Reference([c[0] for c in columns], [c[2] for c in columns], [c[1] for c in columns])


Routings = Callable[[int], list[LayerRouting]]


@pytest.fixture
def routings(streaming: Streaming, documents: Documents, monkeypatch: pytest.MonkeyPatch) -> Routings:
    """The routing of all layers with a floor."""

    def collect(floor: int) -> list[LayerRouting]:
        found: list[LayerRouting] = []
        layer = StreamedForward.layer

        def kept(self: StreamedForward, *arguments: object, **options: object) -> LayerRouting:
            found.append(layer(self, *arguments, **options))  # type: ignore[arg-type]
            return found[-1]

        monkeypatch.setattr(StreamedForward, "layer", kept)
        with streaming(documents, floor=floor):
            pass
        return found

    return collect


@pytest.mark.parametrize("floor", [0, 200])
def test_routed_tokens_and_weights_are_transformers(routings: Routings, reference: Reference, floor: int) -> None:
    for layer, routing in enumerate(routings(floor)):
        for expert in range(EXPERTS):
            rows, weights = routing.routed(expert)
            token, place = (reference.chosen[layer] == expert).nonzero(as_tuple=True)
            assert torch.equal(rows, token), (layer, expert)
            assert routing.routed_count(expert) == len(token)
            torch.testing.assert_close(weights, reference.weights[layer][token, place], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("floor", [150, 200, 600, TOKENS - 1])
def test_topped_up_tokens_are_the_next_in_affinity(routings: Routings, reference: Reference, floor: int) -> None:
    topped = 0
    for layer, routing in enumerate(routings(floor)):
        logits = reference.logits[layer].clone()
        logits.scatter_(1, reference.chosen[layer], -torch.inf)
        for expert in range(EXPERTS):
            wanted = max(floor - routing.routed_count(expert), 0)
            scores, rows = logits[:, expert].sort(descending=True)
            ours = routing.topped_up(expert)
            assert len(ours) == min(wanted, int((scores > -torch.inf).sum()))
            # Two tokens whose logits are equal but for rounding may change places.
            torch.testing.assert_close(logits[ours, expert], scores[: len(ours)], rtol=1e-3, atol=1e-4)
            assert len(set(ours.tolist()) & set(rows[: len(ours)].tolist())) >= len(ours) - 1
            topped += len(ours)
    assert topped > 0


@pytest.mark.parametrize("floor", [TOKENS, TOKENS + 1, 100_000])
def test_a_floor_above_the_tokens_gives_every_expert_every_token(routings: Routings, floor: int) -> None:
    for routing in routings(floor):
        for expert in range(EXPERTS):
            seen = torch.cat([routing.routed(expert)[0], routing.topped_up(expert)])
            assert sorted(seen.tolist()) == list(range(TOKENS))


def test_without_a_floor_nobody_is_topped_up(routings: Routings) -> None:
    for routing in routings(0):
        assert sum(len(routing.topped_up(expert)) for expert in range(EXPERTS)) == 0
        assert sum(routing.routed_count(expert) for expert in range(EXPERTS)) == TOKENS * USED


def test_the_floor_changes_no_hidden_state(streaming: Streaming, documents: Documents) -> None:
    """Topped-up tokens are there for the statistics; only what the router chose propagates."""
    results = []
    for floor in (0, 500):
        with streaming(documents, floor=floor) as forward:
            results.append(forward.states.residual.tensor.clone())
    # Not bit for bit: matrix products of more rows round differently.
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-3)


def made_up(tokens: int, experts: int, used: int, floor: int, batch: int) -> tuple[LayerRouting, torch.Tensor]:
    """A routing filled in batches of shuffled tokens, and its logits [T, E]."""
    random = torch.Generator().manual_seed(tokens)
    logits = torch.randn(tokens, experts, generator=random)
    chosen = logits.topk(used, dim=1).indices
    weights = logits.gather(1, chosen).sigmoid()
    routing = LayerRouting(tokens, used, experts, floor, torch.device("cpu"))
    for rows in torch.randperm(tokens, generator=random).split(batch):
        routing.add(rows, route(logits[rows], chosen[rows], weights[rows], rows, floor))
    routing.close()
    return routing, logits


@pytest.mark.parametrize("batch", [1, 3, 50])
@pytest.mark.parametrize(("experts", "used"), [(1, 1), (4, 4), (5, 2), (300, 8)])
def test_batches_of_any_size(experts: int, used: int, batch: int) -> None:
    floor = 20
    routing, logits = made_up(50, experts, used, floor, batch)
    chosen = logits.topk(used, dim=1).indices
    for expert in range(experts):
        routed = (chosen == expert).any(1)
        assert routing.routed(expert)[0].tolist() == routed.nonzero().flatten().tolist()
        others = logits[:, expert].masked_fill(routed, -torch.inf).sort(descending=True).indices
        wanted = min(max(floor - int(routed.sum()), 0), int((~routed).sum()))
        assert routing.topped_up(expert).tolist() == others[:wanted].tolist()


def test_excluded_tokens_go_nowhere() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [3.0, 1.0, 2.0], [0.0, 1.0, 5.0]])
    rows, chosen = torch.tensor([0, 2]), torch.tensor([[1], [2]])
    routing = LayerRouting(3, 1, 3, 9, torch.device("cpu"))
    routing.add(rows, route(logits[rows], chosen, torch.ones(2, 1), rows, 9))
    routing.close()
    assert [routing.routed(expert)[0].tolist() for expert in range(3)] == [[], [0], [2]]
    assert [routing.topped_up(expert).tolist() for expert in range(3)] == [[0, 2], [2], [0]]


def test_no_token_is_left() -> None:
    routing = LayerRouting(3, 1, 2, 4, torch.device("cpu"))
    none = torch.empty(0, dtype=torch.int64)
    routing.add(none, route(torch.empty(0, 2), none.view(0, 1), torch.empty(0, 1), none, 4))
    routing.close()
    assert [routing.routed_count(expert) for expert in range(2)] == [0, 0]
    assert [len(routing.topped_up(expert)) for expert in range(2)] == [0, 0]

"""Statistics that ride on a pass against numpy on the rows that hooks catch in transformers' model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from streaming import Streaming
from transformers import AutoTokenizer
from transformers_reference import model_from_checkpoint

from quantkit.calibration.extremes import ActivationExtremes, overflow_risks
from quantkit.calibration.sums import SquareSums
from quantkit.checkpoint.index import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.forward import rows as operations
from quantkit.forward.documents import Documents
from quantkit.forward.experts import ExpertRows
from quantkit.forward.statistics import EXPERT_SITES, Measured, Ride, Site
from quantkit.forward.streamed import StreamedForward
from quantkit.forward.weights import Expert, Weights
from quantkit.model.tensors import build_model
from quantkit.quantize.hessian import Gram

LENGTHS = [100, 1, 256, 30]
TOKENS, HIDDEN, WIDTH, EXPERTS = sum(LENGTHS), 256, 256, 16
LAYER = 2  # the one that is compared
Rows = dict[tuple[Site, int | None], np.ndarray]


@pytest.fixture(scope="module")
def documents(tiny_m2: Path) -> Documents:
    text = (tiny_m2 / "heldout" / "text_docs.txt").read_text()
    ids = np.array(AutoTokenizer.from_pretrained(tiny_m2)(text)["input_ids"][:TOKENS], np.int32)
    return Documents(ids, np.cumsum([0, *LENGTHS]))


@pytest.fixture(scope="module")
def caught(tiny_m2: Path, documents: Documents) -> Rows:
    """What enters every weight of the layer, float64 [M, K] in the order of the tokens, by site and expert."""
    model = model_from_checkpoint(tiny_m2)
    layer = model.model.layers[LAYER]
    parts: dict[tuple[Site, int | None], list[torch.Tensor]] = {}

    def keep(site: Site) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            parts.setdefault((site, None), []).append(args[0].flatten(0, -2))

        return hook

    def experts(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        hidden, chosen = args[0].reshape(-1, HIDDEN), args[1]
        for expert in range(EXPERTS):
            rows = hidden[(chosen == expert).any(1)]
            gate, up = (rows @ module.gate_up_proj[expert].T).chunk(2, dim=-1)
            parts.setdefault((Site.EXPERT_INPUT, expert), []).append(rows)
            parts.setdefault((Site.EXPERT_MIDDLE, expert), []).append(torch.nn.functional.silu(gate) * up)

    layer.self_attn.q_proj.register_forward_pre_hook(keep(Site.ATTENTION_INPUT))
    layer.self_attn.o_proj.register_forward_pre_hook(keep(Site.ATTENTION_OUTPUT))
    layer.mlp.gate.register_forward_pre_hook(keep(Site.ROUTER))
    layer.mlp.experts.register_forward_pre_hook(experts)
    with torch.no_grad():
        for begin, end in zip(documents.starts, documents.starts[1:], strict=False):
            model(torch.from_numpy(documents.ids[begin:end]).long()[None])
    return {place: torch.cat(rows).double().numpy() for place, rows in parts.items()}


@pytest.fixture
def at_layer(streaming: Streaming, documents: Documents, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run the fixture's layers up to the one that is compared, which statistics ride on."""

    def run(*statistics: object, floor: int = 0, rebuild: object = None) -> None:
        layer = StreamedForward.layer

        def ridden(self: StreamedForward, number: int) -> None:
            if number <= LAYER:
                here = number == LAYER
                only_here = {"statistics": statistics, "floor": floor, "rebuild": rebuild} if here else {}
                layer(self, number, **only_here)  # type: ignore[arg-type]

        monkeypatch.setattr(StreamedForward, "layer", ridden)
        with streaming(documents):
            pass

    return run


def test_square_sums_and_counts(at_layer: Callable[..., None], caught: Rows) -> None:
    sums = SquareSums(EXPERTS)
    at_layer(sums)
    taken = sums.take()
    assert taken.keys() == set(Site)
    for (site, expert), rows in caught.items():
        squares, counts = taken[site]
        assert squares.shape == (EXPERTS if site in EXPERT_SITES else 1, rows.shape[1])
        assert counts[expert or 0] == len(rows)
        np.testing.assert_allclose(squares[expert or 0], np.square(rows).sum(0), rtol=1e-4, err_msg=f"{site} {expert}")
    assert sums.take() == {}


def test_square_sums_of_topped_up_experts(at_layer: Callable[..., None], caught: Rows) -> None:
    """With a floor at or above all tokens every expert sees all rows that the router saw."""
    sums = SquareSums(EXPERTS)
    at_layer(sums, floor=TOKENS)
    squares, counts = sums.take()[Site.EXPERT_INPUT]
    assert counts.tolist() == [TOKENS] * EXPERTS
    expected = np.square(caught[Site.ROUTER, None]).sum(0)
    np.testing.assert_allclose(squares, np.broadcast_to(expected, squares.shape), rtol=1e-4)


def test_activation_extremes(at_layer: Callable[..., None], caught: Rows) -> None:
    extremes = ActivationExtremes(EXPERTS, WIDTH)
    at_layer(extremes)
    taken = extremes.take()
    for expert in range(EXPERTS):
        blocks = caught[Site.EXPERT_MIDDLE, expert].reshape(-1, WIDTH // 32, 32)
        np.testing.assert_allclose(taken[expert, 0], np.abs(blocks).max((0, 2)), rtol=1e-3)
        np.testing.assert_allclose(taken[expert, 1], np.abs(blocks.sum(2)).max(0), rtol=1e-3, atol=1e-5)
    assert not extremes.take().any()


class GramsOfExperts:
    """A Rebuild that changes nothing: it sums x x^T of what every expert is shown."""

    wants_attention, wants_experts = False, True

    def __init__(self, tiny_m2: Path) -> None:
        checkpoint = open_checkpoint(tiny_m2)
        self.weights = Weights(checkpoint, build_model(checkpoint), torch.float32, torch.device("cpu"))
        self.found: dict[int, Gram] = {}

    def before_experts(self, *_: object) -> None:
        self.found.clear()

    def expert(self, expert: int, rows: ExpertRows) -> Expert:
        gram = Gram()
        for part in rows.parts():
            gram.add(part)
        self.found[expert] = gram
        return self.weights.exact_expert(LAYER, expert)


def test_a_rebuild_is_shown_every_experts_rows(at_layer: Callable[..., None], caught: Rows, tiny_m2: Path) -> None:
    grams = GramsOfExperts(tiny_m2)
    sums = SquareSums(EXPERTS)
    at_layer(sums, rebuild=grams)
    assert grams.found.keys() == set(range(EXPERTS))
    for expert, gram in grams.found.items():
        expected = caught[Site.EXPERT_INPUT, expert]
        assert gram.rows == len(expected)
        if gram.rows:
            tolerance = 1e-3 * np.square(expected).sum(0).max()
            np.testing.assert_allclose(gram.total.numpy(), expected.T @ expected, rtol=1e-3, atol=tolerance)
    # The weights that it returned are the model's own, so what enters w2 is too.
    squares, counts = sums.take()[Site.EXPERT_MIDDLE]
    for expert in range(EXPERTS):
        rows = caught[Site.EXPERT_MIDDLE, expert]
        assert counts[expert] == len(rows)
        np.testing.assert_allclose(squares[expert], np.square(rows).sum(0), rtol=1e-2, atol=1e-6)


def test_an_experts_rows_in_several_parts(
    at_layer: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tiny_m2: Path
) -> None:
    """An expert with more rows than are in memory at once is read again for the rest."""

    def measure(most: int) -> tuple[Any, np.ndarray, dict[int, Gram]]:
        sums, extremes, grams = SquareSums(EXPERTS), ActivationExtremes(EXPERTS, WIDTH), GramsOfExperts(tiny_m2)
        monkeypatch.setattr("quantkit.forward.experts.EXPERT_ROWS", most)
        at_layer(sums, extremes, floor=40, rebuild=grams)
        monkeypatch.undo()
        return sums.take(), extremes.take(), grams.found

    whole, peaks, matrices = measure(4096)
    parts, peaks_of_parts, matrices_of_parts = measure(17)
    for site, (squares, counts) in whole.items():
        np.testing.assert_array_equal(parts[site][1], counts)
        np.testing.assert_allclose(parts[site][0], squares, rtol=1e-5)
    np.testing.assert_allclose(peaks_of_parts, peaks, rtol=1e-4, atol=1e-6)
    assert matrices.keys() == matrices_of_parts.keys()
    for expert, gram in matrices.items():
        assert matrices_of_parts[expert].rows == gram.rows
        torch.testing.assert_close(matrices_of_parts[expert].total, gram.total, rtol=1e-4, atol=1e-3)


def test_only_statistics_that_want_a_site_see_it() -> None:
    seen: list[Measured] = []
    wanting = SimpleNamespace(sites={Site.ROUTER}, measure=lambda site, rows: len(rows), collect=seen.append)
    ride = Ride((ActivationExtremes(2, 32), wanting))  # type: ignore[arg-type]
    assert ride.measure(0, Site.ATTENTION_INPUT, None, torch.ones(3, 4)) == []
    assert ride.measure(0, Site.ROUTER, None, torch.ones(0, 4)) == []
    ride.collect(ride.measure(7, Site.ROUTER, None, torch.ones(3, 4)))
    assert seen == [Measured(7, Site.ROUTER, None, 3, 3)]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_sum_that_is_not_finite_is_an_error(wrong: float) -> None:
    sums = SquareSums(4)
    value = sums.measure(Site.EXPERT_MIDDLE, torch.tensor([[1.0, wrong]]))
    with pytest.raises(QuantkitError, match=r"layer 5, expert_middle of expert 2: .*not finite"):
        sums.collect(Measured(5, Site.EXPERT_MIDDLE, 2, 1, value))


def test_squares_that_overflow_are_an_error() -> None:
    sums = SquareSums(4)
    value = sums.measure(Site.ROUTER, torch.full((3, 2), 1e25))
    with pytest.raises(QuantkitError, match="layer 0, router"):
        sums.collect(Measured(0, Site.ROUTER, None, 3, value))


def test_risks_of_overflow() -> None:
    extremes = np.zeros((3, 2, 4), np.float32)
    extremes[:, 0], extremes[:, 1] = 100, 32_000
    assert overflow_risks("t", extremes) is None
    extremes[1, 1, 3] = 40_000
    expected = {"tensor": "t", "experts": [1], "largest_activation": 100.0, "largest_block_sum": 40_000.0}
    assert overflow_risks("t", extremes) == expected | {"overflows": False}
    extremes[2, 0, 0] = 70_000
    expected |= {"experts": [1, 2], "largest_activation": 70_000.0}
    assert overflow_risks("t", extremes) == expected | {"overflows": True}


# The operations on rows: compiled for the CPU, in torch elsewhere


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Call an operation as for a device that is not the CPU, with tensors of the CPU."""

    class OnDevice(torch.Tensor):
        device = SimpleNamespace(type="cuda")  # type: ignore[assignment]

    def call(operation: Callable[..., object], *arguments: object) -> object:
        moved = [a.as_subclass(OnDevice) if isinstance(a, torch.Tensor) else a for a in arguments]
        result = operation(*moved)
        return result.as_subclass(torch.Tensor) if isinstance(result, torch.Tensor) else result

    for name in ("sum_of_squares", "block_extremes", "add_weighted_rows", "all_finite"):
        monkeypatch.delattr(operations.kernels, name)  # so that a compiled loop cannot be what answers
    return call


def cuda(operation: Callable[..., object], *arguments: object) -> object:
    moved = [a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments]
    result = operation(*moved)
    for before, after in zip(arguments, moved, strict=True):
        if isinstance(before, torch.Tensor):
            before.copy_(after.cpu())
    return result.cpu() if isinstance(result, torch.Tensor) else result


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
SHAPES = pytest.mark.parametrize("shape", [(1, 32), (7, 96), (300, 1536)], ids=str)


def some_rows(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(shape[0])) * 10).to(dtype)


def check_operations(
    call: Callable[..., object], shape: tuple[int, int], dtype: torch.dtype, expected: dict[str, torch.Tensor]
) -> None:
    rows = some_rows(shape, dtype)
    torch.testing.assert_close(call(operations.sum_of_squares, rows), expected["squares"], rtol=1e-5, atol=1e-5)
    assert torch.equal(rows, some_rows(shape, dtype)), "the rows that were measured have changed"
    torch.testing.assert_close(call(operations.block_extremes, rows, 32), expected["extremes"], rtol=1e-5, atol=1e-4)
    out = torch.ones(400, shape[1])
    index = torch.randperm(400, generator=torch.Generator().manual_seed(1))[: shape[0]]
    call(operations.add_weighted_rows, out, index, torch.linspace(-1, 1, shape[0]), rows)
    torch.testing.assert_close(out, expected["added"], rtol=1e-5, atol=1e-5)
    assert call(operations.all_finite, rows) is True
    for wrong in (torch.nan, torch.inf, -torch.inf):
        spoilt = rows.clone()
        spoilt[-1, -1] = wrong
        assert call(operations.all_finite, spoilt) is False


def in_double(shape: tuple[int, int], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What the operations have to return, by numpy."""
    rows = some_rows(shape, dtype).double().numpy()
    blocks = rows.reshape(shape[0], -1, 32)
    added = np.ones((400, shape[1]))
    index = torch.randperm(400, generator=torch.Generator().manual_seed(1))[: shape[0]].numpy()
    added[index] += torch.linspace(-1, 1, shape[0]).double().numpy()[:, None] * rows
    expected = {
        "squares": np.square(rows).sum(0),
        "extremes": np.stack([np.abs(blocks).max((0, 2)), np.abs(blocks.sum(2)).max(0)]),
        "added": added,
    }
    return {name: torch.from_numpy(value).float() for name, value in expected.items()}


@DTYPES
@SHAPES
def test_operations_on_the_cpu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    check_operations(lambda operation, *arguments: operation(*arguments), shape, dtype, in_double(shape, dtype))


@DTYPES
@SHAPES
def test_operations_elsewhere(elsewhere: Callable[..., object], shape: tuple[int, int], dtype: torch.dtype) -> None:
    check_operations(elsewhere, shape, dtype, in_double(shape, dtype))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@DTYPES
@SHAPES
def test_operations_on_cuda(shape: tuple[int, int], dtype: torch.dtype) -> None:
    check_operations(cuda, shape, dtype, in_double(shape, dtype))

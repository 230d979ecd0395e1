"""Where a quantized model differs: every expert, router and attention by itself, on the reference's own states.

Inputs are the reference's residual stream, each model's own norm behind it: an AWQ checkpoint has factors folded into
norm, router and experts, so that outputs can be compared and weights cannot.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantkit.errors import BadInput
from quantkit.forward.decoder import AttentionHalf
from quantkit.forward.documents import Documents
from quantkit.forward.embedding import embed
from quantkit.forward.experts import ExpertRows, middle_rows
from quantkit.forward.open_weights import open_tensors
from quantkit.forward.precision import find_device, find_dtype
from quantkit.forward.routing import LayerRouting
from quantkit.forward.rows import finite_rows, product
from quantkit.forward.statistics import Site
from quantkit.forward.streamed import Room, StreamedForward, plan_room
from quantkit.forward.tokens import TokenStates
from quantkit.forward.weights import Expert, ModelWeights
from quantkit.model.spec import HParams
from quantkit.quantize.hessian import Gram
from quantkit.run.progress import WeightProgress
from quantkit.run.sizes import available_threads, memory_budget
from quantkit.verify.divergence.streamed import as_documents
from quantkit.verify.records import Passage

# Tokens of the pass: with 8 of 256 experts each, an expert sees 256 of them.
TOKENS = 8192
ROWS_PER_EXPERT = 64
ROUTER_ROWS = 2048
# The only dimension that may differ: it says how long texts may be, not what becomes of them.
MAY_DIFFER = "context"
# What the report draws.
MAPS = ("error", "gain", "routing", "rows", "attention_error", "attention_gain")


@dataclass(frozen=True)
class LayerFigures:
    """Relative error |y' - y| / |y| and gain <y', y> / <y, y> of outputs y of the reference, y' of the quantized model.

    Norms are over all rows. Where y' is not finite the error is infinite and the gain NaN; both are NaN without rows.
    """

    error: NDArray[np.float64]  # [layers, experts]
    gain: NDArray[np.float64]  # [layers, experts]
    rows: NDArray[np.int64]  # [layers, experts], how many rows were compared
    routing: NDArray[np.float64]  # [layers], share of tokens that both routers send to the same set of experts
    attention_error: NDArray[np.float64]  # [layers]
    attention_gain: NDArray[np.float64]  # [layers]


def layer_figures(
    reference: Path,
    quantized: Path,
    passages: Sequence[Passage],
    *,
    device: str = "cpu",
    memory: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """`compare_layers` as the report has it: "figures", single numbers by name, and "maps", layers by experts."""
    found = compare_layers(reference, quantized, passages, device=device, memory=memory, quiet=quiet)
    return {"figures": summary(found), "maps": {name: getattr(found, name).tolist() for name in MAPS}}


def summary(found: LayerFigures) -> dict[str, float]:
    """The worst and the middle of all layers, leaving out what had no rows; an infinite error is the largest."""

    def over(reduce: Callable[..., Any], values: NDArray[np.float64]) -> float:
        known = values[~np.isnan(values)]
        return float(reduce(known)) if len(known) else float("nan")

    return {
        "expert_error_max": over(np.max, found.error),
        "expert_error_median": over(np.median, found.error),
        "expert_gain_min": over(np.min, found.gain),
        "expert_gain_max": over(np.max, found.gain),
        "routing_min": over(np.min, found.routing),
        "attention_error_max": over(np.max, found.attention_error),
    }


class Agreement:
    """Sums over rows of outputs, from which error and gain come."""

    def __init__(self) -> None:
        self.rows = 0
        self._finite = True
        self._difference = self._inner = self._square = 0.0

    def add(self, reference: torch.Tensor, quantized: torch.Tensor) -> None:
        """Take in rows [M, H] of both; those where the reference itself is not finite are left out."""
        sound = finite_rows(reference)
        y, other = reference[sound].double(), quantized[sound].double()
        self.rows += len(y)
        self._finite &= bool(torch.isfinite(other).all())
        self._difference += float((other - y).square().sum())
        self._inner += float((other * y).sum())
        self._square += float(y.square().sum())

    @property
    def error(self) -> float:
        if not self._finite:
            return float("inf")
        if not self._square:  # without rows, or a reference that gives nothing
            return float("nan") if not self.rows else float("inf") if self._difference else 0.0
        return float((self._difference / self._square) ** 0.5)

    @property
    def gain(self) -> float:
        if not self._finite or not self.rows:
            return float("nan")
        return self._inner / self._square if self._square else 1.0


def compare_layers(
    reference: Path,
    quantized: Path,
    passages: Sequence[Passage],
    *,
    rows_per_expert: int = ROWS_PER_EXPERT,
    tokens: int = TOKENS,
    device: str = "cpu",
    precision: str = "float32",
    memory: int | None = None,
    quiet: bool = False,
) -> LayerFigures:
    """Run `tokens` of the passages through the model at `reference` and hold the one at `quantized` against it.

    Each expert is compared on up to `rows_per_expert` tokens: those routed to it, and where there are fewer the next
    in the router's order. Raises BadInput when a model cannot be read or the two have other dimensions.
    """
    where = find_device(device)
    stored = open_tensors(reference)
    other = open_tensors(quantized)
    _check_same(stored.hparams, other.hparams, reference, quantized)
    documents = as_documents(first_tokens(passages, tokens), stored.hparams, reference)
    dtype = find_dtype(precision, stored.hparams, documents.tokens, where)
    room = _plan_room(stored.hparams, documents, dtype, memory)
    with (
        tempfile.TemporaryDirectory(prefix="quantkit-") as scratch,
        ModelWeights(stored, dtype, where) as weights,
        ModelWeights(other, dtype, where) as other_weights,
        StreamedForward(weights, documents, room, Path(scratch)) as forward,
    ):
        return _compare(forward, other_weights, rows_per_expert, quiet)


def _compare(forward: StreamedForward, quantized: ModelWeights, rows_per_expert: int, quiet: bool) -> LayerFigures:
    h = forward.weights.hparams
    figures = _no_figures(h)
    per_expert = 3 * h.hidden * h.expert_width
    embed(forward.weights, forward.documents, forward.states.residual, forward.room.workers)
    with WeightProgress("comparing layers", h.n_layers * h.n_experts * per_expert, 0, quiet=quiet) as progress:
        for layer in range(h.n_layers):
            halves = [weights.attention_half(layer) for weights in (forward.weights, quantized)]
            attention = Agreement()
            forward.attention_outputs(halves, lambda outputs, sums=attention: sums.add(*outputs))  # type: ignore[misc]
            comparison = _ExpertComparison(forward.weights, quantized, layer, halves, rows_per_expert)
            del halves
            forward.layer(
                layer,
                floor=rows_per_expert,
                advance=lambda expert: progress.advance(per_expert, per_expert),
                rebuild=comparison,
            )
            figures.attention_error[layer], figures.attention_gain[layer] = attention.error, attention.gain
            figures.routing[layer] = comparison.routing
            for expert, found in enumerate(comparison.experts):
                figures.rows[layer, expert] = found.rows
                figures.error[layer, expert], figures.gain[layer, expert] = found.error, found.gain
    return figures


def _no_figures(hparams: HParams) -> LayerFigures:
    def nothing(*shape: int) -> NDArray[np.float64]:
        return np.full(shape, np.nan)

    layers, experts = hparams.n_layers, hparams.n_experts
    rows = np.zeros((layers, experts), np.int64)
    return LayerFigures(
        nothing(layers, experts), nothing(layers, experts), rows, nothing(layers), nothing(layers), nothing(layers)
    )


class _ExpertComparison:
    """Rides on the reference's pass through one layer as its `Rebuild`, whose weights it gives back unchanged."""

    wants_attention = False
    wants_experts = True

    def __init__(
        self,
        reference: ModelWeights,
        quantized: ModelWeights,
        layer: int,
        halves: Sequence[AttentionHalf],
        rows_per_expert: int,
    ) -> None:
        self.experts = [Agreement() for _ in range(reference.hparams.n_experts)]
        self.routing = float("nan")
        self._weights = (reference, quantized)
        self._layer = layer
        # Of the halves, only what stands behind the attention.
        self._norms = [half.expert_norm for half in halves]
        self._routers = [(half.router, half.router_bias) for half in halves]
        self._most = rows_per_expert
        self._residual = torch.empty(0)

    def attention(self, grams: dict[Site, Gram]) -> dict[str, torch.Tensor]:
        """Not asked for."""
        return {}

    def before_experts(self, routing: LayerRouting, states: TokenStates) -> None:
        """Keep the residual, which the experts will change, and compare the routers on it."""
        self._residual = states.residual.read(torch.arange(states.residual.shape[0]))
        same = total = 0
        for rows in torch.split(states.alive.nonzero().flatten(), ROUTER_ROWS):
            sets = [self._chosen(number, self._residual[rows]) for number in range(2)]
            same += int((sets[0] == sets[1]).all(1).sum())
            total += len(rows)
        self.routing = same / total if total else float("nan")

    def _chosen(self, number: int, residual: torch.Tensor) -> torch.Tensor:
        """The experts of each row, ascending, [M, k]; -1 - number, which is nobody's, where a score is not finite."""
        router, bias = self._routers[number]
        logits, _, places = router(self._norms[number](residual), bias)
        chosen: torch.Tensor = places.sort(1).values
        chosen[~finite_rows(logits + bias)] = -1 - number
        return chosen

    def expert(self, expert: int, rows: ExpertRows) -> Expert:
        """Compare one expert; return the reference's, to go on with."""
        reference, quantized = (weights.expert(self._layer, expert) for weights in self._weights)
        # Spread over the texts: routed tokens are in their order, those that only bring it to the floor behind them.
        routed = max(len(rows.weights), min(rows.count, self._most))
        places = (
            torch.linspace(0, routed - 1, min(routed, self._most)).round().long() if routed else torch.empty(0).long()
        )
        theirs = self._norms[1](self._residual[rows.index[places]])
        self.experts[expert].add(_outputs(reference, rows.at(places)), _outputs(quantized, theirs))
        # Its memory is the thread's, which reads the next one before this one is used.
        return Expert(reference.gate_up.clone(), reference.down.clone())


def _outputs(expert: Expert, rows: torch.Tensor) -> torch.Tensor:
    return product(middle_rows(rows, expert.gate_up), expert.down)


def first_tokens(passages: Sequence[Passage], tokens: int) -> list[Passage]:
    """Passages of about `tokens` tokens together, taken from all domains in turn; the last may be cut."""
    domains: dict[str, list[Passage]] = {}
    for passage in passages:
        domains.setdefault(passage.domain, []).append(passage)
    chosen: list[Passage] = []
    for turn in zip_longest(*domains.values()):
        for passage in turn:
            if passage is not None and tokens >= 2:
                chosen.append(Passage(passage.domain, passage.name, passage.ids[:tokens]))
                tokens -= len(chosen[-1].ids)
    return chosen


def _check_same(reference: HParams, quantized: HParams, path: Path, other: Path) -> None:
    for field in fields(HParams):
        ours, theirs = getattr(reference, field.name), getattr(quantized, field.name)
        if ours != theirs and field.name != MAY_DIFFER:
            raise BadInput(
                f"{other}: {field.name} is {theirs}, that of {path} is {ours}; layers of different models cannot be "
                "compared"
            )


def _plan_room(hparams: HParams, documents: Documents, dtype: torch.dtype, memory: int | None) -> Room:
    """Room beside what a comparison holds: a second residual and attention, and experts ahead of their use."""
    h = hparams
    residual = documents.tokens * h.hidden * 4
    attention = 4 * h.hidden * (h.n_heads + h.n_kv_heads) * h.head_dim * dtype.itemsize
    # A worker has the quantized expert in its hands, three of the reference's wait for it.
    expert = 3 * h.hidden * h.expert_width
    worker = 4 * expert * dtype.itemsize + 2 * expert
    return plan_room(h, documents, dtype, available_threads(), memory_budget(memory) - residual - attention, worker)

"""The first half of a layer for all tokens: norm, attention, residual, norm, router. From transformers' modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from quantkit.forward.decoder import AttentionHalf
from quantkit.forward.documents import Batch
from quantkit.forward.ordered import run_ordered
from quantkit.forward.routing import BatchRouting, LayerRouting, route
from quantkit.forward.rows import all_finite, finite_rows
from quantkit.forward.statistics import Measured, Ride, Site
from quantkit.forward.tokens import TokenStates


@dataclass(frozen=True)
class _Result:
    rows: torch.Tensor  # the batch's tokens that are still in
    broken: torch.Tensor  # those that were not finite here
    routing: BatchRouting
    measured: list[tuple[int, Measured]]


def attention_half(
    half: AttentionHalf,
    rotary: nn.Module,
    states: TokenStates,
    batches: Sequence[Batch],
    routing: LayerRouting,
    ride: Ride,
    layer: int,
    threads: int,
) -> None:
    """Update `states` and fill `routing`; statistics see the inputs of the attention matrices and of the router."""
    device = states.residual.device

    def work(batch: Batch) -> _Result:
        rows = batch.rows.to(device)
        live = states.alive[rows]
        everything = bool(live.all())
        residual = states.residual.read(rows)
        normed = half.input_norm(residual)
        measured = ride.measure(layer, Site.ATTENTION_INPUT, None, normed if everything else normed[live])
        attended, output = _attend(half, rotary, normed, batch)
        sound = everything and all_finite(attended)
        entering = attended if sound else attended[live & finite_rows(attended)]
        measured += ride.measure(layer, Site.ATTENTION_OUTPUT, None, entering)
        residual += output
        finite = live if all_finite(residual) else live & finite_rows(residual)
        residual[~finite] = 0
        states.residual.write(rows, residual)
        normed = half.expert_norm(residual)
        states.normed.write(rows, normed)
        kept = normed[finite] if not bool(finite.all()) else normed
        logits, weights, chosen = half.router(kept, half.router_bias)
        measured += ride.measure(layer, Site.ROUTER, None, kept)
        kept_rows = rows[finite]
        return _Result(
            kept_rows, rows[live & ~finite], route(logits, chosen, weights, kept_rows, routing.floor), measured
        )

    def commit(batch: Batch, result: _Result) -> None:
        routing.add(result.rows, result.routing)
        states.exclude(result.broken, layer, None)
        ride.collect(result.measured)

    run_ordered(batches, work, commit, threads)
    routing.close()


def attention_inputs(
    half: AttentionHalf,
    rotary: nn.Module,
    states: TokenStates,
    batches: Sequence[Batch],
    take: Callable[[Site, torch.Tensor], None],
    threads: int,
) -> None:
    """Show `take` what enters the attention matrices, batch by batch in their order; `states` stay as they are."""

    def work(batch: Batch) -> dict[Site, torch.Tensor]:
        rows = batch.rows.to(states.residual.device)
        live = states.alive[rows]
        normed = half.input_norm(states.residual.read(rows))
        attended, _ = _attend(half, rotary, normed, batch)
        return {
            Site.ATTENTION_INPUT: normed[live],
            Site.ATTENTION_OUTPUT: attended[live & finite_rows(attended)],
        }

    def commit(batch: Batch, found: dict[Site, torch.Tensor]) -> None:
        for site, rows in found.items():
            take(site, rows)

    run_ordered(batches, work, commit, threads)


def attention_outputs(
    halves: Sequence[AttentionHalf],
    rotary: nn.Module,
    states: TokenStates,
    batches: Sequence[Batch],
    take: Callable[[list[torch.Tensor]], None],
    threads: int,
) -> None:
    """Show `take` what each of `halves` would add to the residual, [M, H] each; `states` stay as they are."""

    def work(batch: Batch) -> list[torch.Tensor]:
        rows = batch.rows.to(states.residual.device)
        live = states.alive[rows]
        residual = states.residual.read(rows)
        return [_attend(half, rotary, half.input_norm(residual), batch)[1][live] for half in halves]

    run_ordered(batches, work, lambda batch, outputs: take(outputs), threads)


def _attend(
    half: AttentionHalf, rotary: nn.Module, normed: torch.Tensor, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of rows [M, H] within their documents: before the output projection [M, q width] and after it."""
    whole = len(batch.rows) == batch.documents * batch.length
    places = None if whole else batch.places.to(normed.device)
    # Padding stands behind a document's tokens, where a causal mask hides it from all of them.
    padded = normed if places is None else normed.new_zeros(batch.documents * batch.length, normed.shape[1])
    if places is not None:
        padded[places] = normed
    positions = torch.arange(batch.length, device=normed.device)[None]
    attended, _ = half.attention(
        padded.view(batch.documents, batch.length, -1), rotary(normed, positions), attention_mask=None
    )
    flat: torch.Tensor = attended.flatten(0, 1)
    output = nn.functional.linear(flat, half.output)
    return (flat, output) if places is None else (flat[places], output[places])

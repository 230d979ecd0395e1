"""The second half of a layer: each expert is read, dequantized, used on the tokens routed to it, and dropped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from quantkit.forward.ordered import run_ordered
from quantkit.forward.routing import LayerRouting
from quantkit.forward.rows import all_finite, finite_rows, product, round_up
from quantkit.forward.statistics import Measured, Ride, Site
from quantkit.forward.tokens import TokenStates
from quantkit.forward.weights import Expert, Weights

# Rows of one expert that are in memory at once; one with more is read again for the rest.
EXPERT_ROWS = 2048
# So many experts beyond those at work are announced to the system's read-ahead.
READ_AHEAD = 4


@dataclass(frozen=True)
class _Job:
    """Some of an expert's rows: `routed` of them propagate, the rest is there for the statistics."""

    expert: int
    rows: torch.Tensor  # int64 [M]
    weights: torch.Tensor  # float32 [routed]

    @property
    def routed(self) -> int:
        return len(self.weights)


@dataclass(frozen=True)
class _Result:
    rows: torch.Tensor
    weights: torch.Tensor
    output: torch.Tensor  # [routed, H]
    broken: torch.Tensor
    measured: list[tuple[int, Measured]]


def expert_half(
    weights: Weights,
    states: TokenStates,
    routing: LayerRouting,
    ride: Ride,
    layer: int,
    threads: int,
    advance: Callable[[int], None],
) -> None:
    """Add the routed experts' outputs to the residual; statistics see the routed and the topped-up tokens.

    `advance(expert)` is called once an expert is done. The sum over a token's experts is taken in the order of their
    numbers, whatever the threads do.
    """
    jobs = _jobs(routing, weights.hparams.n_experts)

    def work(numbered: tuple[int, _Job]) -> _Result:
        number, job = numbered
        for later in jobs[number + threads : number + threads + READ_AHEAD]:
            weights.announce(layer, later.expert)
        return _run_expert(weights.expert(layer, job.expert), job, states, ride, layer)

    def commit(numbered: tuple[int, _Job], result: _Result) -> None:
        number, job = numbered
        states.residual.add(result.rows, result.weights, result.output)
        states.exclude(result.broken, layer, job.expert)
        ride.collect(result.measured)
        if number + 1 == len(jobs) or jobs[number + 1].expert != job.expert:
            advance(job.expert)

    run_ordered(list(enumerate(jobs)), work, commit, threads)
    states.clear_excluded()


def _jobs(routing: LayerRouting, experts: int) -> list[_Job]:
    jobs = []
    for expert in range(experts):
        rows, weights = routing.routed(expert)
        rows = torch.cat([rows, routing.topped_up(expert)])
        for first in range(0, len(rows), EXPERT_ROWS):
            last = first + EXPERT_ROWS
            jobs.append(_Job(expert, rows[first:last], weights[first:last]))
    return jobs


def _run_expert(expert: Expert, job: _Job, states: TokenStates, ride: Ride, layer: int) -> _Result:
    count = len(job.rows)
    filled = torch.cat([job.rows, job.rows[:1].expand(round_up(count) - count)])
    rows = states.normed.read(filled)
    measured = ride.measure(layer, Site.EXPERT_INPUT, job.expert, rows[:count])
    gate, up = product(rows, expert.gate_up).chunk(2, dim=-1)
    middle = nn.functional.silu(gate).mul_(up)
    output = product(middle[: round_up(job.routed)], expert.down)[: job.routed]
    middle = middle[:count]
    routed = job.rows[: job.routed]
    # What is not finite in the middle is not finite in the output either, which routed rows have.
    if all_finite(output) and all_finite(middle[job.routed :]):
        measured += ride.measure(layer, Site.EXPERT_MIDDLE, job.expert, middle)
        return _Result(routed, job.weights, output, routed[:0], measured)
    measured += ride.measure(layer, Site.EXPERT_MIDDLE, job.expert, middle[finite_rows(middle)])
    fine = finite_rows(output)
    return _Result(routed[fine], job.weights[fine], output[fine], routed[~fine], measured)

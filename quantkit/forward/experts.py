"""The second half of a layer: each expert is read, dequantized, used on the tokens routed to it, and dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from quantkit.forward.ordered import run_ordered
from quantkit.forward.routing import LayerRouting
from quantkit.forward.rows import all_finite, finite_rows, product, round_up
from quantkit.forward.statistics import Measured, Ride, Site
from quantkit.forward.tokens import TokenStates
from quantkit.forward.weights import Expert, ModelWeights
from quantkit.quantize.hessian import Gram

# Rows of one expert that are in memory at once; one with more is read again for the rest.
EXPERT_ROWS = 2048
# So many experts beyond those at work are announced to the system's read-ahead.
READ_AHEAD = 4


class ExpertRows:
    """What enters one expert: the tokens routed to it, then those that were added for its statistics."""

    def __init__(self, states: TokenStates, index: torch.Tensor, weights: torch.Tensor) -> None:
        """`index` int64 [M] are the tokens, `weights` float32 [routed] what the router gives the first of them."""
        self.count = len(index)
        self.weights = weights
        self.index = index
        self._states = states

    def parts(self) -> Iterator[torch.Tensor]:
        """Yield all rows, [m, H] at a time."""
        for first in range(0, self.count, EXPERT_ROWS):
            yield self._states.normed.read(self.index[first : first + EXPERT_ROWS])

    def at(self, places: torch.Tensor) -> torch.Tensor:
        """The rows at `places` int64 [m], [m, H]."""
        return self._states.normed.read(self.index[places])


class Rebuild(Protocol):
    """Gives a layer other weights while a pass runs: those propagate."""

    @property
    def wants_attention(self) -> bool:
        """Whether the attention gets other weights: what enters its matrices is measured for it then."""
        ...

    @property
    def wants_experts(self) -> bool:
        """Whether the experts get other weights."""
        ...

    def attention(self, grams: dict[Site, Gram]) -> dict[str, torch.Tensor]:
        """Return the attention's weights to go on with, by role. Called first of all."""
        ...

    def before_experts(self, routing: LayerRouting, states: TokenStates) -> None:
        """Called before the layer's experts, when all tokens are routed."""

    def expert(self, expert: int, rows: ExpertRows) -> Expert:
        """Return the weights to go on with, in memory of their own. Called by several threads at a time."""
        ...


@runtime_checkable
class GroupRebuild(Rebuild, Protocol):
    """A `Rebuild` that gives several experts their weights at a time."""

    @property
    def together(self) -> int:
        """How many experts at a time."""
        ...

    def experts(self, numbers: Sequence[int], rows: Sequence[ExpertRows]) -> list[Expert]:
        """Return the weights of the experts `numbers` to go on with. Called by several threads at a time."""
        ...


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
    weights: ModelWeights,
    states: TokenStates,
    routing: LayerRouting,
    ride: Ride,
    layer: int,
    threads: int,
    advance: Callable[[int], None],
    rebuild: Rebuild | None = None,
) -> None:
    """Add the routed experts' outputs to the residual; statistics see the routed and the topped-up tokens.

    `advance(expert)` is called once an expert is done. The sum over a token's experts is taken in the order of their
    numbers, whatever the threads do. With `rebuild` every expert gets its new weights first, a few experts ahead of
    their use, so that no thread waits.
    """
    experts = weights.hparams.n_experts
    jobs = [_jobs(routing, expert) for expert in range(experts)]
    rebuilt: dict[int, Future[Expert]] = {}
    items: list[_Job | _Renewal] = [job for some in jobs for job in some]
    if rebuild is not None and rebuild.wants_experts:
        rebuild.before_experts(routing, states)
        rebuilt = {expert: Future() for expert in range(experts)}
        items = _with_renewals(jobs, rebuild.together if isinstance(rebuild, GroupRebuild) else 1, threads)
    order = [item.expert for item in items]

    def work(numbered: tuple[int, _Job | _Renewal]) -> _Result | None:
        number, item = numbered
        for later in order[number + threads : number + threads + READ_AHEAD]:
            weights.announce(layer, later)
        if isinstance(item, _Job):
            expert = rebuilt[item.expert].result() if rebuilt else weights.expert(layer, item.expert)
            return _run_expert(expert, item, states, ride, layer)
        assert rebuild is not None
        try:
            rows = [ExpertRows(states, *expert_rows(routing, renewed)) for renewed in item.experts]
            for renewed, new in zip(item.experts, _renew(rebuild, item.experts, rows), strict=True):
                rebuilt[renewed].set_result(new)
        except BaseException as error:
            for renewed in item.experts:
                if not rebuilt[renewed].done():
                    rebuilt[renewed].set_exception(error)  # nobody is to wait for it
            raise
        return None

    def commit(numbered: tuple[int, _Job | _Renewal], result: _Result | None) -> None:
        item = numbered[1]
        if result is not None:
            states.residual.add(result.rows, result.weights, result.output)
            states.exclude(result.broken, layer, item.expert)
            ride.collect(result.measured)
        last = isinstance(item, _Job) and item is jobs[item.expert][-1]
        if last or not jobs[item.expert]:
            rebuilt.pop(item.expert, None)
            advance(item.expert)

    run_ordered(list(enumerate(items)), work, commit, threads)
    states.clear_excluded()


@dataclass(frozen=True)
class _Renewal:
    """Experts that get their new weights."""

    experts: range

    @property
    def expert(self) -> int:
        return self.experts[0]


def _with_renewals(jobs: list[list[_Job]], together: int, threads: int) -> list[_Job | _Renewal]:
    """The experts' `jobs`, and well before them the renewals, each of so many experts `together`."""
    groups = [range(first, min(first + together, len(jobs))) for first in range(0, len(jobs), together)]
    lead = max(2 * threads // together, 2)
    items: list[_Job | _Renewal] = [_Renewal(group) for group in groups[:lead]]
    for number, group in enumerate(groups):
        items += [job for expert in group for job in jobs[expert]]
        items += [_Renewal(later) for later in groups[number + lead : number + lead + 1]]
    return items


def _renew(rebuild: Rebuild, numbers: range, rows: Sequence[ExpertRows]) -> Sequence[Expert]:
    if isinstance(rebuild, GroupRebuild):
        return rebuild.experts(numbers, rows)
    return [rebuild.expert(numbers[0], rows[0])]


def expert_rows(routing: LayerRouting, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All tokens that the expert sees, int64 [M], and the weights of its output for the routed ones, first of them."""
    rows, weights = routing.routed(expert)
    return torch.cat([rows, routing.topped_up(expert)]), weights


def _jobs(routing: LayerRouting, expert: int) -> list[_Job]:
    rows, weights = expert_rows(routing, expert)
    return [
        _Job(expert, rows[first : first + EXPERT_ROWS], weights[first : first + EXPERT_ROWS])
        for first in range(0, len(rows), EXPERT_ROWS)
    ]


def middle_rows(rows: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """What enters w2 when `rows` [M, H] enter w1 and w3, [M, W]."""
    gate, up = product(rows, gate_up).chunk(2, dim=-1)
    return nn.functional.silu(gate).mul_(up)


def _run_expert(expert: Expert, job: _Job, states: TokenStates, ride: Ride, layer: int) -> _Result:
    count = len(job.rows)
    filled = torch.cat([job.rows, job.rows[:1].expand(round_up(count) - count)])
    rows = states.normed.read(filled)
    measured = ride.measure(layer, Site.EXPERT_INPUT, job.expert, rows[:count])
    middle = middle_rows(rows, expert.gate_up)
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

"""What may be learnt from the rows that enter a weight matrix, while they pass."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import torch


class Site(StrEnum):
    """A place in a layer where rows of activations enter weights."""

    ATTENTION_INPUT = "attention_input"
    ATTENTION_OUTPUT = "attention_output"
    ROUTER = "router"
    EXPERT_INPUT = "expert_input"
    EXPERT_MIDDLE = "expert_middle"


EXPERT_SITES = frozenset({Site.EXPERT_INPUT, Site.EXPERT_MIDDLE})


@dataclass(frozen=True)
class Measured:
    """The `value` that a statistic took of `rows` rows at a site; `expert` is None outside of the experts."""

    layer: int
    site: Site
    expert: int | None
    rows: int
    value: Any


class Statistic(Protocol):
    """One consumer of a pass. Several ride on the same one."""

    sites: frozenset[Site]

    def measure(self, site: Site, rows: torch.Tensor) -> Any:
        """Reduce `rows` [M, K], bfloat16 or float32; called by several threads at a time."""

    def collect(self, measured: Measured) -> None:
        """Take in what was measured; called by one thread at a time, always in the same order.

        A layer's sites before the experts come in batches of tokens; an expert's rows may come in several parts.
        """


class Ride:
    """All statistics of a pass, seen from one site."""

    def __init__(self, statistics: tuple[Statistic, ...]) -> None:
        self.statistics = statistics

    def measure(self, layer: int, site: Site, expert: int | None, rows: torch.Tensor) -> list[tuple[int, Measured]]:
        """Let every statistic that wants `site` measure `rows`; (its number, what it measured)."""
        return [
            (number, Measured(layer, site, expert, len(rows), statistic.measure(site, rows)))
            for number, statistic in enumerate(self.statistics)
            if site in statistic.sites and len(rows)
        ]

    def collect(self, measured: list[tuple[int, Measured]]) -> None:
        """Hand every value to the statistic that took it."""
        for number, value in measured:
            self.statistics[number].collect(value)

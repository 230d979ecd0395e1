"""X^T X of what enters an expert's matrices, handed on just in time: the Hessian of GPTQ and AWQ's objective."""

from __future__ import annotations

from collections.abc import Callable

import torch

from quantkit.forward.statistics import EXPERT_SITES, Measured, Site

Sink = Callable[[int, Site, int, torch.Tensor, int], None]


class GramMatrices:
    """Sums X^T X over an expert's rows and gives it away once the next expert begins: one per site in memory."""

    def __init__(self, sink: Sink, sites: frozenset[Site] = EXPERT_SITES) -> None:
        """`sink(layer, site, expert, gram [K, K] float32, rows)` is called in the order of the experts."""
        self.sites = sites
        self._sink = sink
        self._open: dict[Site, Measured] = {}

    def measure(self, site: Site, rows: torch.Tensor) -> torch.Tensor:
        """X^T X of `rows` [M, K], float32 [K, K]."""
        wide = rows.float()
        return wide.T @ wide

    def collect(self, measured: Measured) -> None:
        """Add a part of an expert, or hand on the one before."""
        before = self._open.get(measured.site)
        if before is not None and (before.layer, before.expert) == (measured.layer, measured.expert):
            before.value.add_(measured.value)
            measured = Measured(before.layer, before.site, before.expert, before.rows + measured.rows, before.value)
        elif before is not None:
            self._hand_on(before)
        self._open[measured.site] = measured

    def finish(self) -> None:
        """Hand on what the last expert left. To be called at the end of a layer."""
        for measured in self._open.values():
            self._hand_on(measured)
        self._open.clear()

    def _hand_on(self, measured: Measured) -> None:
        assert measured.expert is not None
        self._sink(measured.layer, measured.site, measured.expert, measured.value, measured.rows)

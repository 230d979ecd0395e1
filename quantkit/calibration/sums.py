"""The statistic behind an importance matrix: sum(x^2) per input column of every weight, and how many rows went in."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import torch

from quantkit.arrays import Float32
from quantkit.errors import QuantkitError
from quantkit.forward.rows import sum_of_squares
from quantkit.forward.statistics import EXPERT_SITES, Measured, Site

Sums = tuple[Float32, Float32]  # sums [matrices, K] and rows [matrices]; matrices is the experts, or 1


class SquareSums:
    """Adds up the squares of what enters the weights of one layer after the other."""

    sites = frozenset(Site)

    def __init__(self, experts: int) -> None:
        self.experts = experts
        self._sums: dict[Site, npt.NDArray[np.float64]] = {}
        self._rows: dict[Site, npt.NDArray[np.int64]] = defaultdict(lambda: np.zeros(experts, np.int64))

    def measure(self, site: Site, rows: torch.Tensor) -> torch.Tensor:
        """sum(x^2) of `rows` [M, K], float32 [K]."""
        return sum_of_squares(rows)

    def collect(self, measured: Measured) -> None:
        """Add one part; raises QuantkitError when a sum is not finite."""
        value = measured.value.cpu().double().numpy()
        if not np.isfinite(value).all():
            where = measured.site if measured.expert is None else f"{measured.site} of expert {measured.expert}"
            raise QuantkitError(
                f"layer {measured.layer}, {where}: the sum of squared activations is not finite; "
                "repeat with --precision float32, and check the checkpoint if that fails as well"
            )
        matrices = self.experts if measured.site in EXPERT_SITES else 1
        if measured.site not in self._sums:
            self._sums[measured.site] = np.zeros((matrices, len(value)))
        self._sums[measured.site][measured.expert or 0] += value
        self._rows[measured.site][measured.expert or 0] += measured.rows

    def take(self) -> dict[Site, Sums]:
        """Return the layer's sums and start again for the next one. A site that saw nothing is absent."""
        taken = {
            site: (sums.astype(np.float32), self._rows[site][: len(sums)].astype(np.float32))
            for site, sums in self._sums.items()
        }
        self._sums.clear()
        self._rows.clear()
        return taken

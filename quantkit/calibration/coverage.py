"""How evenly the calibration tokens reached the experts: what a report shows, and says in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from quantkit.forward.routing import LayerRouting

WORST = 10


@dataclass(frozen=True)
class LayerCoverage:
    """Tokens per expert of one layer, int64 [experts]: routed by the model, and added up to the floor."""

    routed: npt.NDArray[np.int64]
    topped_up: npt.NDArray[np.int64]

    @property
    def entropy(self) -> float:
        """Entropy of the routing over its largest possible value: 1 when all experts are used alike."""
        share = self.routed / max(self.routed.sum(), 1)
        used = share[share > 0]
        return float(-(used * np.log(used)).sum() / np.log(len(share))) if len(share) > 1 else 1.0


def layer_coverage(routing: LayerRouting) -> LayerCoverage:
    """Count a layer's tokens."""
    experts = range(routing.experts)
    return LayerCoverage(
        np.array([routing.routed_count(expert) for expert in experts]),
        np.array([len(routing.topped_up(expert)) for expert in experts]),
    )


def coverage_report(layers: list[LayerCoverage], floor: int) -> dict[str, Any]:
    """The coverage of all layers as one JSON object, with the `WORST` experts first in line for a closer look."""
    routed = np.stack([layer.routed for layer in layers])
    reached = routed + np.stack([layer.topped_up for layer in layers])
    order = np.argsort(routed, axis=None, kind="stable")[:WORST]
    worst = [divmod(int(place), routed.shape[1]) for place in order]
    return {
        "min_tokens_per_expert": floor,
        "experts": int(routed.size),
        "experts_without_routed_tokens": int((routed == 0).sum()),
        "experts_below_floor": int((routed < floor).sum()),
        "experts_still_below_floor": int((reached < floor).sum()),
        "experts_without_tokens": int((reached == 0).sum()),
        "routed_median": float(np.median(routed)),
        "routed_min": int(routed.min()),
        "routed_max": int(routed.max()),
        "worst": [
            {
                "layer": layer,
                "expert": expert,
                "routed": int(routed[layer, expert]),
                "seen": int(reached[layer, expert]),
            }
            for layer, expert in worst
        ],
        "layers": [
            {
                "layer": number,
                "entropy": round(layer.entropy, 4),
                "routed": layer.routed.tolist(),
                "topped_up": layer.topped_up.tolist(),
            }
            for number, layer in enumerate(layers)
        ],
    }

"""A layer quantized while calibration tokens pass through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from quantkit.calibration.coverage import layer_coverage
from quantkit.calibration.layer_store import Arrays, LayerStore
from quantkit.calibration.tokens import TokenSet
from quantkit.forward.streamed import StreamedForward
from quantkit.forward.weights import Weights
from quantkit.run.calibrated.forward import bring_to, open_forward
from quantkit.run.calibrated.tokens import Excluded
from quantkit.run.int4.experts import solver_bytes
from quantkit.run.int4.experts_together import layer_quantizer
from quantkit.run.int4.folder import PackedFolder, Plan
from quantkit.run.int4.settings import Int4Settings
from quantkit.run.sizes import available_threads


@contextmanager
def open_calibrated(
    plan: Plan, settings: Int4Settings, tokens: TokenSet, device: str, precision: str, memory: int | None
) -> Iterator[CalibratedPass]:
    """A pass with `tokens`. Raises BadInput when device, precision or memory cannot do it."""
    with open_forward(
        plan.checkpoint,
        plan.model,
        tokens,
        device=device,
        precision=precision,
        memory=memory,
        threads=available_threads(),
        solver=solver_bytes(plan.model.hparams),
        scratch=plan.out.resolve().parent,
    ) as (weights, forward):
        yield CalibratedPass(plan, settings, weights, forward)


class CalibratedPass:
    """Calibration tokens pass through the quantized layers, and what enters a matrix decides about its integers."""

    def __init__(self, plan: Plan, settings: Int4Settings, weights: Weights, forward: StreamedForward) -> None:
        self.reader = weights.reader
        self.states = forward.states
        self.precision = str(weights.dtype).removeprefix("torch.")
        self._plan = plan
        self._settings = settings
        self._weights = weights
        self._forward = forward

    def start(self, store: LayerStore, finished: int) -> None:
        """Bring the tokens' states to the layer."""
        bring_to(self._forward, store, finished)

    def layer(self, layer: int, folder: PackedFolder, advance: Callable[[int], None]) -> Arrays:
        """Run the layer; its experts, unless they are kept, are replaced by quantized ones on the way."""
        quantizer = layer_quantizer(self._weights, folder, self._settings, layer)
        routing = self._forward.layer(layer, (), self._settings.min_tokens, advance, quantizer)
        coverage = layer_coverage(routing)
        return quantizer.take_records() | {"routed": coverage.routed, "topped_up": coverage.topped_up}

    @property
    def excluded(self) -> Excluded:
        """What the pass left out, earlier runs of it included."""
        return dict(self._forward.states.excluded)

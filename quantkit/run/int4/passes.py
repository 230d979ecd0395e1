"""How a layer gets quantized: with calibration tokens passing through it, or by its weights alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np

from quantkit.checkpoint.reader import Reader
from quantkit.errors import BadInput
from quantkit.forward.ordered import run_ordered
from quantkit.quantize.kquants.rows import Rows
from quantkit.quantize.rtn import quantize_rtn
from quantkit.run.int4.contents import Fate, Piece
from quantkit.run.int4.folder import PackedFolder, Plan
from quantkit.run.sizes import available_threads, format_size, memory_budget, resident

if TYPE_CHECKING:
    from quantkit.calibration.layer_store import Arrays, LayerStore
    from quantkit.calibration.tokens import TokenSet
    from quantkit.forward.tokens import TokenStates
    from quantkit.run.calibrated.tokens import Excluded
    from quantkit.run.int4.settings import Int4Settings


class LayerPass(Protocol):
    """One way through the layers, in their order. `states` and `precision` are None where no tokens pass."""

    @property
    def reader(self) -> Reader: ...

    @property
    def states(self) -> TokenStates | None: ...

    @property
    def precision(self) -> str | None: ...

    def start(self, store: LayerStore, finished: int) -> None:
        """Get ready for layer `finished`."""

    def layer(self, layer: int, folder: PackedFolder, advance: Callable[[int], None]) -> Arrays:
        """Quantize a layer into `folder`, call `advance` after every expert, and return what is to be remembered."""
        ...

    @property
    def excluded(self) -> Excluded:
        """Tokens by (layer, expert or None) where they became not finite."""
        ...


@contextmanager
def open_pass(
    plan: Plan, settings: Int4Settings, tokens: TokenSet | None, device: str, precision: str, memory: int | None
) -> Iterator[LayerPass]:
    """A pass with `tokens`, or one that rounds. Raises BadInput when device, precision or memory cannot do it."""
    if tokens is None:
        workers = _rounding_workers(plan, memory_budget(memory))
        with Reader(plan.checkpoint, plan.model.block) as reader:
            yield RoundingPass(plan, reader, workers)
        return
    # Rounding is over before torch and transformers, which only tokens need, would be loaded.
    from quantkit.run.int4.calibrated_pass import open_calibrated

    with open_calibrated(plan, settings, tokens, device, precision, memory) as layer_pass:
        yield layer_pass


def _rounding_workers(plan: Plan, budget: int) -> int:
    """How many matrices may be in memory at once; BadInput when not even the largest one."""
    packed = (piece.tensor.source_shape for piece in plan.pieces if piece.fate is Fate.PACKED)
    # Stored, in float32, its codes, and these packed.
    worker = 8 * max((math.prod(shape) for shape in packed), default=0)
    if worker > budget:
        raise BadInput(
            f"--memory: one matrix needs {format_size(worker)} beside the program's {format_size(resident())}; "
            f"give at least --memory {-(-(resident() + worker) // 10**6)}M"
        )
    return min(available_threads(), budget // worker) if worker else 1


class RoundingPass:
    """Every matrix by itself: round to nearest."""

    states = None
    precision = None

    def __init__(self, plan: Plan, reader: Reader, workers: int) -> None:
        self.reader = reader
        self._plan = plan
        self._workers = workers

    def start(self, store: LayerStore, finished: int) -> None:
        """Nothing passes from one layer to the next; say what will be read."""
        stages = range(finished or -1, self._plan.model.hparams.n_layers + 1)
        self.reader.expect(name for stage in stages for name in self._plan.sources_of(stage))

    def layer(self, layer: int, folder: PackedFolder, advance: Callable[[int], None]) -> Arrays:
        """Round the layer's matrices, several at a time."""
        packed = [piece for piece in self._plan.pieces_of(layer) if piece.fate is Fate.PACKED]
        last = {piece.number: piece for piece in packed if piece.tensor.matrices > 1}

        grid, unreachable = self._plan.scheme.grid, 0

        def work(piece: Piece) -> int:
            quantized, lost = quantize_rtn(self._read(piece), grid)
            folder.write_quantized(piece, quantized)
            return lost

        def commit(piece: Piece, lost: int) -> None:
            nonlocal unreachable
            unreachable += lost
            if last.get(piece.number) is piece:
                advance(piece.number)

        run_ordered(packed, work, commit, self._workers)
        return {"unreachable_groups": np.array(unreachable)}

    def _read(self, piece: Piece) -> Rows:
        """A matrix as stored where that is FP8, else as float32."""
        if not self.reader.is_fp8(piece.source):
            return Rows(self.reader.read_rows(piece.source, piece.scale))
        assert piece.scale is not None
        codes, scale = self.reader.read_fp8(piece.source, piece.scale, (0, piece.tensor.source_shape[0]))
        return Rows(codes=codes, scale=scale, block=self.reader.block)

    @property
    def excluded(self) -> Excluded:
        """No tokens, none excluded."""
        return {}

"""Solved matrices into their places in every output that wants them."""

from __future__ import annotations

from quantkit.arrays import Bytes
from quantkit.model.spec import ModelTensor
from quantkit.run.gguf.plan import Plan
from quantkit.run.output import OutputFiles


class SolvedFiles:
    """The partial files of all outputs of a plan."""

    def __init__(self, plan: Plan, files: OutputFiles) -> None:
        self._plan = plan
        self._files = files
        self._places: list[dict[str, tuple[int, int]]] = []
        number = 0
        for output in plan.outputs:
            places: dict[str, tuple[int, int]] = {}
            for part in output.parts:
                places |= {name: (number, offset) for name, offset in part.offsets.items()}
                number += 1
            self._places.append(places)

    @property
    def outputs(self) -> int:
        """How many there are."""
        return len(self._plan.outputs)

    @property
    def kquants(self) -> str:
        """Whose search makes k-quants."""
        return self._plan.kquants

    def type_of(self, output: int, tensor: ModelTensor) -> str:
        """The type of a tensor in an output."""
        return self._plan.outputs[output].types[tensor.gguf]

    def wanted(self, tensor: ModelTensor) -> dict[str, list[int]]:
        """The types of a tensor, the first output's first, and the numbers of the outputs that want each."""
        found: dict[str, list[int]] = {}
        for number in range(self.outputs):
            found.setdefault(self.type_of(number, tensor), []).append(number)
        return found

    def write(self, outputs: list[int], tensor: ModelTensor, matrix: int, first: int, packed: Bytes) -> None:
        """Write rows of a tensor's matrix, `packed` [N, bytes per row] from row `first` on. Thread-safe."""
        row = matrix * tensor.source_shape[0] + first
        for output in outputs:
            part, offset = self._places[output][tensor.gguf]
            self._files.write(part, offset + row * packed.shape[1], packed)

"""Matrices where what enters them is known, in all types that are wanted: solved, written, and what that loses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from quantkit.arrays import Bytes, Float32
from quantkit.checkpoint.index import Checkpoint
from quantkit.errors import QuantkitError
from quantkit.forward.ordered import run_ordered
from quantkit.forward.weights import Weights
from quantkit.model.spec import ModelTensor
from quantkit.quantize.blocks.grid import QUICK, THOROUGH, Effort
from quantkit.quantize.compensate import COMPENSATED_TYPES, compare_losses, factorize, solve_blocks
from quantkit.quantize.ggml_blocks import dequantize
from quantkit.quantize.hessian import Feedback
from quantkit.quantize.kquants.rows import NotRepresentable, Rows
from quantkit.quantize.rows import CAST_TYPES, quantize_rows
from quantkit.run.gguf.files import SolvedFiles
from quantkit.run.gguf.items import ITEM_WEIGHTS
from quantkit.run.gguf.quantize_item import not_representable

# Output errors of a matrix: by the search alone, with importance, and as chosen. Zeros where there was no choice.
LOSSES = 3


@dataclass(frozen=True)
class Solved:
    """Rows of a matrix: `packed` uint8 [N, bytes per row], `values` float32 [N, K], their `losses` float64 [3]."""

    packed: Bytes
    values: Float32
    losses: npt.NDArray[np.float64]


class Inputs:
    """What enters some matrices: the mean of x x^T, float32 [K, K], and how errors are fed back under it."""

    def __init__(self, hessian: torch.Tensor, checkpoint: Checkpoint, tensor: ModelTensor, matrix: int = 0) -> None:
        """Factorize it, once for all types. Raises QuantkitError naming the matrix when it is not finite."""
        found = factorize(hessian) if bool(torch.isfinite(hessian).all()) else None
        if found is None:
            raise QuantkitError(
                f"{checkpoint.folder}: tensor {tensor.sources[matrix]}: what enters it is not finite; repeat with "
                f"--precision float32, or give {tensor.gguf} the type F16 or BF16 with --tensor-type"
            )
        self.hessian = hessian
        self.feedback: Feedback = found


class MatrixSolver:
    """Solves the matrices of a checkpoint for all outputs that will hold them."""

    def __init__(self, weights: Weights, files: SolvedFiles) -> None:
        self.weights = weights
        self.files = files

    def inputs(self, hessian: torch.Tensor, tensors: Sequence[ModelTensor], matrix: int = 0) -> Inputs | None:
        """What enters all of `tensors`; None where none of them gets a type that depends on it."""
        if all(kind in CAST_TYPES for tensor in tensors for kind in self.files.wanted(tensor)):
            return None
        return Inputs(hessian, self.weights.checkpoint, tensors[0], matrix)

    def solve(
        self,
        tensor: ModelTensor,
        matrix: int,
        weights: torch.Tensor,
        inputs: Inputs | None,
        kind: str,
        effort: Effort = QUICK,
    ) -> Solved:
        """Return `weights` float32 [N, K], rows of a matrix of `tensor`, in the type `kind`.

        `inputs` may be None where that is a cast. Raises BadInput when a weight is too large for the type.
        """
        try:
            if kind in CAST_TYPES:
                packed = quantize_rows(Rows(weights.numpy()), kind)
                return Solved(packed, dequantize(packed, kind, weights.shape[1]), np.zeros(LOSSES))
            assert inputs is not None
            solution = solve_blocks(weights, inputs.hessian, inputs.feedback, kind, effort, self.files.kquants)
        except NotRepresentable as error:
            source = tensor.sources[matrix]
            raise not_representable(self.weights.checkpoint, source, tensor.gguf, error) from None
        losses = np.zeros(LOSSES)
        if kind in COMPENSATED_TYPES:
            found = compare_losses(weights, inputs.hessian, kind, solution.values, self.files.kquants)
            losses[:] = found.plain, found.weighted, found.chosen
        return Solved(solution.packed, solution.values, losses)

    def solve_in_rows(
        self,
        tensors: Sequence[ModelTensor],
        inputs: Inputs | None,
        workers: int,
        take: Callable[[ModelTensor, slice, Float32], None] = lambda tensor, rows, values: None,
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Solve and write matrices that are not stacked, in parts; return their losses by role, [outputs, 3].

        Every token passes through these few matrices, so more is tried for them than for an expert's. `take` is shown
        the rows as the first output holds them. Where a matrix is cut does not depend on `workers`.
        """
        jobs = [(tensor, rows) for tensor in tensors for rows in _row_chunks(*tensor.source_shape)]
        losses = {tensor.role.name: np.zeros((self.files.outputs, LOSSES)) for tensor in tensors}

        def work(job: tuple[ModelTensor, slice]) -> npt.NDArray[np.float64]:
            tensor, rows = job
            read = self.weights.reader.read_rows(tensor.sources[0], tensor.scales[0], (rows.start, rows.stop))
            lost = np.zeros((self.files.outputs, LOSSES))
            for kind, outputs in self.files.wanted(tensor).items():
                solved = self.solve(tensor, 0, torch.from_numpy(read), inputs, kind, THOROUGH)
                self.files.write(outputs, tensor, 0, rows.start, solved.packed)
                lost[outputs] = solved.losses
                if 0 in outputs:
                    take(tensor, rows, solved.values)
            return lost

        def commit(job: tuple[ModelTensor, slice], lost: npt.NDArray[np.float64]) -> None:
            losses[job[0].role.name] += lost

        run_ordered(jobs, work, commit, workers)
        return losses


def _row_chunks(rows: int, columns: int) -> list[slice]:
    step = max(ITEM_WEIGHTS // columns, 1)
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]

"""The output matrix, behind the last layer: solved on the normed final states of all tokens."""

from __future__ import annotations

import numpy as np
import torch

from quantkit.calibration.layer_store import Arrays
from quantkit.forward.embedding import final_norm
from quantkit.forward.experts import EXPERT_ROWS
from quantkit.forward.streamed import single_threaded_torch
from quantkit.forward.tokens import TokenStates
from quantkit.quantize.hessian import Gram
from quantkit.run.gguf.calibration import OUTPUT_ROLE
from quantkit.run.gguf.matrices import MatrixSolver


def compensate_head(solver: MatrixSolver, states: TokenStates, workers: int) -> Arrays:
    """Quantize the output matrix and write it; return its losses [outputs, 3] and damping."""
    norm, tensor = final_norm(solver.weights), solver.weights.tensor(OUTPUT_ROLE)
    entering = Gram()
    with single_threaded_torch():
        for tokens in torch.split(states.alive.nonzero().flatten(), EXPERT_ROWS):
            entering.add(norm(states.residual.read(tokens)))
        inputs = solver.inputs(entering.mean(tensor.source_shape[1]).cpu(), [tensor])
        losses = solver.solve_in_rows([tensor], inputs, workers)
    damping = np.array([inputs.feedback.damping if inputs is not None else 0.0])
    return {f"losses.{role}": found for role, found in losses.items()} | {"damping": damping}

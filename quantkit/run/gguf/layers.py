"""A layer's matrices in all types that are wanted, while tokens pass: the first output's weights are what flows on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from quantkit.arrays import Float32
from quantkit.calibration.layer_store import Arrays
from quantkit.forward.experts import ExpertRows
from quantkit.forward.routing import LayerRouting
from quantkit.forward.statistics import Site
from quantkit.forward.tokens import TokenStates
from quantkit.forward.weights import Expert
from quantkit.model.spec import HParams, ModelTensor
from quantkit.quantize.hessian import Gram
from quantkit.quantize.rows import CAST_TYPES
from quantkit.run.calibrated.hessians import ATTENTION_ROLES, Middle, entering_hessian, middles, shared_hessian
from quantkit.run.gguf.files import SolvedFiles
from quantkit.run.gguf.matrices import LOSSES, Inputs, MatrixSolver

GATE, UP, DOWN = EXPERT_ROLES = "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"


def solver_bytes(hparams: HParams, outputs: int) -> int:
    """What one worker holds while it quantizes an expert for so many outputs, in float32."""
    gate_up = 2 * hparams.expert_width * hparams.hidden * 4
    middle = hparams.expert_width**2 * 4
    squares = hparams.hidden**2 * 4 + 2 * middle
    return 6 * gate_up + 6 * squares + outputs * (2 * gate_up + 2 * middle)


@dataclass(frozen=True)
class Variant:
    """Outputs whose w1 and w3 have the same types, `gate` and `up`; by their types of w2."""

    gate: str
    up: str
    downs: dict[str, list[int]]

    @property
    def has_blocks(self) -> bool:
        """Whether some w2 depends on what enters it."""
        return any(kind not in CAST_TYPES for kind in self.downs)


class LayerCompensator:
    """Quantizes a layer's matrices as the forward pass reaches them, and writes them."""

    wants_attention = True
    wants_experts = True

    def __init__(self, solver: MatrixSolver, layer: int, workers: int) -> None:
        self._solver = solver
        self._layer = layer
        self._workers = workers
        self._tensors = {role: solver.weights.tensor(role, layer) for role in EXPERT_ROLES}
        self._variants = _variants(solver.files, self._tensors)
        self._shared = torch.empty(0)
        self._losses: Arrays = {}
        self._damping: Arrays = {}
        self._rows = np.empty(0, np.int64)

    def attention(self, grams: dict[Site, Gram]) -> dict[str, torch.Tensor]:
        """Quantize the attention's matrices, and return them as the first output holds them."""
        served: dict[str, torch.Tensor] = {}
        damping = []

        def take(tensor: ModelTensor, rows: slice, values: Float32) -> None:
            served[tensor.role.name][rows] = torch.from_numpy(values)

        for site, roles in ATTENTION_ROLES.items():
            tensors = [self._solver.weights.tensor(role, self._layer) for role in roles]
            served |= {tensor.role.name: torch.empty(tensor.source_shape) for tensor in tensors}
            hessian = grams.pop(site).mean(tensors[0].source_shape[1]).cpu()
            inputs = self._solver.inputs(hessian, tensors)
            damping.append(inputs.feedback.damping if inputs is not None else 0.0)
            self._losses |= self._solver.solve_in_rows(tensors, inputs, self._workers, take)
        self._damping["attention"] = np.array(damping)
        return served

    def before_experts(self, routing: LayerRouting, states: TokenStates) -> None:
        """Take what all tokens have in common, which thin experts lean on."""
        experts, outputs = routing.experts, self._solver.files.outputs
        self._losses |= {role: np.zeros((outputs, experts, LOSSES)) for role in EXPERT_ROLES}
        self._damping |= {"entering": np.zeros(experts), "middle": np.zeros((len(self._variants), experts))}
        self._rows = np.zeros(experts, np.int64)
        self._shared = shared_hessian(states)

    def expert(self, expert: int, rows: ExpertRows) -> Expert:
        """Quantize one expert, and return it as the first output holds it."""
        weights = self._solver.weights
        exact = weights.exact_expert(self._layer, expert)
        self._rows[expert] = rows.count
        gate_ups = self._gate_up(expert, exact, rows)
        dtype, device = weights.dtype, weights.device
        served = [gate_up.to(device, dtype) for gate_up in gate_ups]
        wanted = [number for number, variant in enumerate(self._variants) if variant.has_blocks]
        found = dict(zip(wanted, middles(rows, exact.gate_up.to(device, dtype), [served[number] for number in wanted])))
        downs = [self._down(expert, exact.down, number, found.get(number)) for number in range(len(served))]
        return Expert(served[0], downs[0].to(device, dtype))

    def take_records(self) -> Arrays:
        """What became of the layer: `losses.ROLE` [outputs, 3], all dampings, and the rows of every expert [E]."""
        sums = {role: losses.sum(1) if losses.ndim > 2 else losses for role, losses in self._losses.items()}
        damping = np.concatenate([found.reshape(-1) for found in self._damping.values()])
        return {f"losses.{role}": found for role, found in sums.items()} | {"damping": damping, "rows": self._rows}

    def _gate_up(self, expert: int, exact: Expert, rows: ExpertRows) -> list[torch.Tensor]:
        """Quantize w1 and w3 over one Hessian; return them [2 W, H] as every variant has them."""
        gate, up = self._tensors[GATE], self._tensors[UP]
        inputs = self._solver.inputs(entering_hessian(rows, self._shared), [gate, up], expert)
        if inputs is not None:
            self._damping["entering"][expert] = inputs.feedback.damping
        solve = partial(self._matrix, expert, inputs)
        width = gate.source_shape[0]
        gates = {kind: solve(gate, kind, exact.gate_up[:width], outputs) for kind, outputs in self._wanted(gate)}
        ups = {kind: solve(up, kind, exact.gate_up[width:], outputs) for kind, outputs in self._wanted(up)}
        return [torch.cat([gates[variant.gate], ups[variant.up]]) for variant in self._variants]

    def _down(self, expert: int, exact: torch.Tensor, number: int, middle: Middle | None) -> torch.Tensor:
        """Quantize w2 behind a variant's w1 and w3, for all that want it; return the first one."""
        down, variant, inputs = self._tensors[DOWN], self._variants[number], None
        bent = exact
        if middle is not None:
            bent, hessian = middle.bent(exact)
            if not middle.passing.rows:  # nothing passed: all columns are alike
                hessian = torch.eye(len(hessian))
            inputs = Inputs(hessian, self._solver.weights.checkpoint, down, expert)
            self._damping["middle"][number, expert] = inputs.feedback.damping
        solved = [
            self._matrix(expert, inputs, down, kind, exact if kind in CAST_TYPES else bent, outputs)
            for kind, outputs in variant.downs.items()
        ]
        return solved[0]

    def _matrix(
        self,
        expert: int,
        inputs: Inputs | None,
        tensor: ModelTensor,
        kind: str,
        weights: torch.Tensor,
        outputs: list[int],
    ) -> torch.Tensor:
        solved = self._solver.solve(tensor, expert, weights, inputs, kind)
        self._solver.files.write(outputs, tensor, expert, 0, solved.packed)
        self._losses[tensor.role.name][outputs, expert] = solved.losses
        return torch.from_numpy(solved.values)

    def _wanted(self, tensor: ModelTensor) -> Sequence[tuple[str, list[int]]]:
        return list(self._solver.files.wanted(tensor).items())


def _variants(files: SolvedFiles, tensors: dict[str, ModelTensor]) -> list[Variant]:
    """Those that some output wants, the first output's first."""
    found: dict[tuple[str, str], Variant] = {}
    for output in range(files.outputs):
        gate, up, down = (files.type_of(output, tensors[role]) for role in EXPERT_ROLES)
        variant = found.setdefault((gate, up), Variant(gate, up, {}))
        variant.downs.setdefault(down, []).append(output)
    return list(found.values())

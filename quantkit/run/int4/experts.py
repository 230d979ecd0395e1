"""One expert after the other onto its grid, while the calibration tokens pass: what is written is what propagates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from quantkit.calibration.layer_store import Arrays
from quantkit.errors import QuantkitError
from quantkit.forward.experts import EXPERT_ROWS, ExpertRows, middle_rows
from quantkit.forward.routing import LayerRouting
from quantkit.forward.rows import finite_rows
from quantkit.forward.tokens import TokenStates
from quantkit.forward.weights import Expert, Weights
from quantkit.model.spec import HParams
from quantkit.quantize.gptq import Solution, round_weighted, solve
from quantkit.quantize.hessian import Gram, retargeted, shrunk
from quantkit.quantize.integers import Quantized
from quantkit.run.int4.contents import Fate, Piece
from quantkit.run.int4.folder import PackedFolder
from quantkit.run.int4.scaling import SAMPLED_INPUTS, InputScaling, every, find_input_scaling, find_middle_factors
from quantkit.run.int4.settings import Int4Settings, Method

# A thin expert's Hessian is pulled toward what its layer's tokens have in common, as if so many of them were its own.
PRIOR_ROWS = 128
# How much the inputs of w2 may bend it toward the output of the original expert.
RETARGETING = 0.01
# So many tokens say what those have in common.
SHARED_TOKENS = 16384
ROLES = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def solver_bytes(hparams: HParams) -> int:
    """What one worker holds while it quantizes an expert: its matrices, Hessians and their factors in float32."""
    gate_up = 2 * hparams.expert_width * hparams.hidden * 4
    squares = (hparams.hidden**2 + 2 * hparams.expert_width**2) * 4
    return 6 * gate_up + 6 * squares


class ExpertQuantizer:
    """Quantizes the experts of a layer as the forward pass reaches them, and writes them."""

    def __init__(self, weights: Weights, folder: PackedFolder, settings: Int4Settings) -> None:
        self._weights = weights
        self._folder = folder
        self._settings = settings
        self._solve = solve if settings.method is Method.GPTQ or settings.then_gptq else round_weighted
        self._scaling: InputScaling | None = None
        self._shared = torch.empty(0)
        self._records: Arrays = {}

    def layer(self, layer: int, routing: LayerRouting, states: TokenStates) -> None:
        """Find what the experts share: AWQ's factors, and the Hessian of all tokens that thin experts lean on."""
        experts = routing.experts
        self._records = {
            "loss": np.zeros((2, experts)),
            "rounding_loss": np.zeros((2, experts)),
            "damping": np.zeros((2, experts)),
            "rows": np.zeros(experts, np.int64),
        }
        if self._settings.method is Method.AWQ:
            norm, router = (self._weights.tensor(role, layer).sources[0] for role in ("ffn_norm", "ffn_gate_inp"))
            self._scaling = find_input_scaling(
                self._weights, layer, routing, states, self._settings.grid, self._folder.dtype_of(norm)
            )
            self._folder.write_tensor(norm, self._scaling.norm)
            self._folder.write_tensor(router, self._scaling.router)
        tokens = every(states.alive.nonzero().flatten(), SHARED_TOKENS)
        shared = Gram()
        for first in range(0, len(tokens), EXPERT_ROWS):
            shared.add(states.normed.read(tokens[first : first + EXPERT_ROWS]))
        self._shared = shared.mean(states.normed.shape[1])

    def expert(self, layer: int, expert: int, rows: ExpertRows) -> Expert:
        """Quantize one expert, write it, and return it as it will be served."""
        exact = self._weights.exact_expert(layer, expert)
        width = len(exact.gate_up) // 2
        columns = self._scaling.factors if self._scaling is not None else torch.ones(exact.gate_up.shape[1])
        middles = self._middle_factors(exact, rows)
        target = exact.gate_up * columns
        target[width:] /= middles[:, None]
        entering = Gram()
        for part in rows.parts():
            entering.add(part)
        hessian = shrunk(entering.mean(len(columns)), entering.rows, self._shared, PRIOR_ROWS)
        hessian /= torch.outer(columns, columns)
        gate_up = self._solved(target, hessian, layer, expert, 0)
        self._write(layer, expert, ROLES[0], _rows_of(gate_up, slice(None, width)))
        self._write(layer, expert, ROLES[1], _rows_of(gate_up, slice(width, None)))
        served = torch.from_numpy(gate_up.dequantized()) / columns

        passing, cross = Gram(), Gram()
        for before, after in self._middles(exact.gate_up, served, middles, rows):
            passing.add(after)
            cross.add(before, after)
        own, crossed = passing.mean(width), cross.mean(width)
        hessian = shrunk(own, passing.rows, torch.diag(own.diagonal()), PRIOR_ROWS)
        target = retargeted(exact.down * middles, crossed, own, RETARGETING)
        down = self._solved(target, hessian, layer, expert, 1)
        self._write(layer, expert, ROLES[2], down)
        self._records["rows"][expert] = rows.count
        dtype, device = self._weights.dtype, self._weights.device
        return Expert(served.to(device, dtype), torch.from_numpy(down.dequantized()).to(device, dtype))

    def take_records(self) -> Arrays:
        """What became of the layer's experts: output errors and damping, [2, E] with w1 and w3 first, and rows [E]."""
        return self._records

    def _middle_factors(self, exact: Expert, rows: ExpertRows) -> torch.Tensor:
        """AWQ's factors between w3 and w2, [W]; 1 where there is nothing to go by."""
        if self._settings.method is Method.AWQ and rows.count:
            some = rows.at(every(torch.arange(rows.count), SAMPLED_INPUTS))
            middle = middle_rows(some, exact.gate_up.to(some.dtype))
            middle = middle[finite_rows(middle)]
            if len(middle):
                return find_middle_factors(exact.down, middle, self._settings.grid).values
        return torch.ones(exact.down.shape[1])

    def _middles(
        self, exact: torch.Tensor, served: torch.Tensor, factors: torch.Tensor, rows: ExpertRows
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What enters w2 behind the original w1 and w3, and behind the quantized ones; rows that are finite in both."""
        dtype = self._weights.dtype
        exact, served = exact.to(dtype), served.to(dtype)
        for part in rows.parts():
            before, after = middle_rows(part, exact) / factors.to(dtype), middle_rows(part, served)
            fine = finite_rows(before) & finite_rows(after)
            yield before[fine], after[fine]

    def _solved(self, target: torch.Tensor, hessian: torch.Tensor, layer: int, expert: int, row: int) -> Quantized:
        solution: Solution | None = self._solve(target, hessian, self._settings.grid)
        if solution is None:
            name = self._weights.tensor(ROLES[2 * row], layer).sources[expert]
            raise QuantkitError(
                f"{self._weights.checkpoint.folder}: tensor {name}: what enters it is not finite; repeat with "
                f"--precision float32, or keep the layer with --keep-layers {layer}"
            )
        self._records["loss"][row, expert] = solution.loss
        self._records["rounding_loss"][row, expert] = solution.rounding_loss
        self._records["damping"][row, expert] = solution.damping or 0.0
        return solution.quantized

    def _write(self, layer: int, expert: int, role: str, quantized: Quantized) -> None:
        self._folder.write_quantized(Piece(self._weights.tensor(role, layer), expert, Fate.PACKED), quantized)


def _rows_of(quantized: Quantized, rows: slice) -> Quantized:
    return Quantized(quantized.codes[rows], quantized.scales[rows], quantized.zeros[rows])

"""One expert after the other onto its grid, while the calibration tokens pass: what is written is what propagates."""

from __future__ import annotations

import threading

import numpy as np
import torch

from quantkit.arrays import Float32
from quantkit.calibration.layer_store import Arrays
from quantkit.errors import QuantkitError
from quantkit.formats.scheme import Attention
from quantkit.forward.experts import ExpertRows, middle_rows
from quantkit.forward.routing import LayerRouting
from quantkit.forward.rows import finite_rows
from quantkit.forward.statistics import Site
from quantkit.forward.tokens import TokenStates
from quantkit.forward.weights import Expert, Weights
from quantkit.model.spec import HParams
from quantkit.quantize.gptq import Solution, round_weighted, solve
from quantkit.quantize.hessian import Gram
from quantkit.quantize.integers import Quantized
from quantkit.quantize.scales import unreachable_groups
from quantkit.run.calibrated.hessians import ATTENTION_ROLES, entering_hessian, every, middles, shared_hessian
from quantkit.run.int4.contents import Fate, Piece
from quantkit.run.int4.folder import PackedFolder
from quantkit.run.int4.scaling import SAMPLED_INPUTS, InputScaling, find_input_scaling, find_middle_factors
from quantkit.run.int4.settings import Int4Settings, Method

ROLES = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def solver_bytes(hparams: HParams) -> int:
    """What one worker holds while it quantizes an expert: its matrices, Hessians and their factors in float32."""
    gate_up = 2 * hparams.expert_width * hparams.hidden * 4
    squares = (hparams.hidden**2 + 2 * hparams.expert_width**2) * 4
    return 6 * gate_up + 6 * squares


class LayerQuantizer:
    """Quantizes the matrices of a layer as the forward pass reaches them, and writes them."""

    def __init__(self, weights: Weights, folder: PackedFolder, settings: Int4Settings, layer: int) -> None:
        self._weights = weights
        self._folder = folder
        self._settings = settings
        self._layer = layer
        self._solve = solve if settings.method is Method.GPTQ or settings.then_gptq else round_weighted
        self._scaling: InputScaling | None = None
        self._shared = torch.empty(0)
        self._records: Arrays = {}
        self._attention_damping: list[float] = []
        self._unreachable = 0
        self._lock = threading.Lock()

    @property
    def wants_attention(self) -> bool:
        """Whether the attention is quantized too."""
        return self._settings.attention is Attention.INT4

    @property
    def wants_experts(self) -> bool:
        """Whether the layer's experts are quantized."""
        return self._layer not in self._settings.kept_layers

    def attention(self, grams: dict[Site, Gram]) -> dict[str, torch.Tensor]:
        """Quantize a layer's attention matrices, write them, and return them as they will be served."""
        served = {}
        for site, roles in ATTENTION_ROLES.items():
            sources = {role: self._weights.values(role, self._layer).cpu() for role in roles}
            stacked = torch.cat(list(sources.values()))
            quantized, solution = self._solved(stacked, grams[site].mean(stacked.shape[1]).cpu(), roles[0], 0)
            self._attention_damping.append(solution.damping or 0.0)
            first = 0
            for role, weights in sources.items():
                part = rows_of(quantized, slice(first, first + len(weights)))
                self._write(0, role, part)
                served[role] = torch.from_numpy(part.dequantized())
                first += len(weights)
        return served

    def before_experts(self, routing: LayerRouting, states: TokenStates) -> None:
        """Find what the experts share: AWQ's factors, and the Hessian of all tokens that thin experts lean on."""
        experts = routing.experts
        self._records = {
            "loss": np.zeros((2, experts)),
            "rounding_loss": np.zeros((2, experts)),
            "damping": np.zeros((2, experts)),
            "rows": np.zeros(experts, np.int64),
        }
        if self._settings.method is Method.AWQ:
            norm, router = (self._weights.tensor(role, self._layer).sources[0] for role in ("ffn_norm", "ffn_gate_inp"))
            self._scaling = find_input_scaling(
                self._weights, self._layer, routing, states, self._settings.grid, self._folder.dtype_of(norm)
            )
            self._folder.write_tensor(norm, self._scaling.norm)
            self._folder.write_tensor(router, self._scaling.router)
        self._shared = shared_hessian(states)

    def expert(self, expert: int, rows: ExpertRows) -> Expert:
        """Quantize one expert, write it, and return it as it will be served."""
        exact = self._weights.exact_expert(self._layer, expert)
        factors = self._middle_factors(exact, rows)
        gate_up = self._gate_up(expert, exact, factors, rows)
        down = self._down(expert, exact, gate_up, factors, rows)
        self._records["rows"][expert] = rows.count
        dtype, device = self._weights.dtype, self._weights.device
        return Expert(gate_up.to(device, dtype), down.to(device, dtype))

    def _gate_up(self, expert: int, exact: Expert, factors: torch.Tensor, rows: ExpertRows) -> torch.Tensor:
        """Quantize w1 and w3 over one Hessian; return them as served, for inputs without AWQ's factors."""
        width, columns = exact.down.shape[1], torch.ones(exact.gate_up.shape[1])
        if self._scaling is not None:
            columns = self._scaling.factors
        target = exact.gate_up * columns
        target[width:] /= factors[:, None]
        hessian = entering_hessian(rows, self._shared)
        hessian /= torch.outer(columns, columns)
        quantized, solution = self._solved(target, hessian, ROLES[0], expert)
        self._record(solution, expert, 0)
        self._write(expert, ROLES[0], rows_of(quantized, slice(None, width)))
        self._write(expert, ROLES[1], rows_of(quantized, slice(width, None)))
        return torch.from_numpy(quantized.dequantized()) / columns

    def _down(
        self, expert: int, exact: Expert, gate_up: torch.Tensor, factors: torch.Tensor, rows: ExpertRows
    ) -> torch.Tensor:
        """Quantize w2 on what the quantized w1 and w3 let through; return it as served."""
        dtype, device = self._weights.dtype, self._weights.device
        original, served, divisors = (tensor.to(device, dtype) for tensor in (exact.gate_up, gate_up, factors))
        (middle,) = middles(rows, original, [served], divisors)
        target, hessian = middle.bent(exact.down * factors)
        quantized, solution = self._solved(target, hessian, ROLES[2], expert)
        self._record(solution, expert, 1)
        self._write(expert, ROLES[2], quantized)
        return torch.from_numpy(quantized.dequantized())

    def take_records(self) -> Arrays:
        """What became of the layer.

        Of its experts the output errors and damping, [2, E] with w1 and w3 first, and rows [E]; of its attention the
        damping.
        """
        return self._records | {
            "attention_damping": np.array(self._attention_damping),
            "unreachable_groups": np.array(self._unreachable),
        }

    def _middle_factors(self, exact: Expert, rows: ExpertRows) -> torch.Tensor:
        """AWQ's factors between w3 and w2, [W]; 1 where there is nothing to go by."""
        if self._settings.method is Method.AWQ and rows.count:
            some = rows.at(every(torch.arange(rows.count), SAMPLED_INPUTS))
            middle = middle_rows(some, exact.gate_up.to(some.device, some.dtype))
            middle = middle[finite_rows(middle)].cpu()
            if len(middle):
                return find_middle_factors(exact.down, middle, self._settings.grid).values
        return torch.ones(exact.down.shape[1])

    def _solved(
        self, target: torch.Tensor, hessian: torch.Tensor, role: str, number: int
    ) -> tuple[Quantized, Solution]:
        finite = bool(torch.isfinite(target).all())
        solution: Solution | None = self._solve(target, hessian, self._settings.grid) if finite else None
        if solution is None:
            raise self._not_finite(role, number)
        self._count_unreachable(target.numpy(), solution)
        return solution.quantized, solution

    def _not_finite(self, role: str, number: int) -> QuantkitError:
        name = self._weights.tensor(role, self._layer).sources[number]
        return QuantkitError(
            f"{self._weights.checkpoint.folder}: tensor {name}: what enters it is not finite; repeat with "
            f"--precision float32, or keep the layer with --keep-layers {self._layer}"
        )

    def _count_unreachable(self, target: Float32, solution: Solution) -> None:
        lost = unreachable_groups(target, solution.quantized.scales, self._settings.grid)
        with self._lock:
            self._unreachable += lost

    def _record(self, solution: Solution, expert: int, row: int) -> None:
        self._records["loss"][row, expert] = solution.loss
        self._records["rounding_loss"][row, expert] = solution.rounding_loss
        self._records["damping"][row, expert] = solution.damping or 0.0

    def _write(self, expert: int, role: str, quantized: Quantized) -> None:
        self._folder.write_quantized(Piece(self._weights.tensor(role, self._layer), expert, Fate.PACKED), quantized)


def rows_of(quantized: Quantized, rows: slice) -> Quantized:
    """Some rows of a quantized matrix."""
    return Quantized(quantized.codes[rows], quantized.scales[rows], quantized.zeros[rows])

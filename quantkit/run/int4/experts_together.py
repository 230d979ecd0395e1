"""Experts onto their grid many at a time, on a GPU: the steps of `experts`, each for a whole group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from quantkit.forward.experts import EXPERT_ROWS, ExpertRows
from quantkit.forward.weights import Expert, Weights
from quantkit.model.spec import HParams
from quantkit.quantize.batched import solver
from quantkit.quantize.batched.hessians import Grams, retargeted, shrunk
from quantkit.quantize.batched.solver import Solutions
from quantkit.run.calibrated.hessians import BENDING
from quantkit.run.int4.experts import ROLES, LayerQuantizer, rows_of
from quantkit.run.int4.folder import PackedFolder
from quantkit.run.int4.settings import Int4Settings, Method

# Groups that are in device memory at once: one is solved while the next one is read, and one is used.
IN_FLIGHT = 3
# More experts at a time gain nothing.
MOST_TOGETHER = 64


def layer_quantizer(weights: Weights, folder: PackedFolder, settings: Int4Settings, layer: int) -> LayerQuantizer:
    """What quantizes a layer's experts on the device of `weights`."""
    if weights.device.type == "cpu":
        return LayerQuantizer(weights, folder, settings, layer)
    return GroupQuantizer(weights, folder, settings, layer, experts_that_fit(weights.hparams, weights.device))


def experts_that_fit(hparams: HParams, device: torch.device) -> int:
    """How many experts the free memory of `device` takes at a time, at least one."""
    free, _ = torch.cuda.mem_get_info(device)
    # Weights, codes, errors and scales of w1 and w3, and the Hessian with its factors: about so many of their size.
    expert = 20 * 2 * hparams.expert_width * hparams.hidden * 4
    return min(max(int(0.8 * free) // (IN_FLIGHT * expert), 1), MOST_TOGETHER)


class GroupQuantizer(LayerQuantizer):
    """A `LayerQuantizer` that takes `together` experts at a time."""

    def __init__(
        self, weights: Weights, folder: PackedFolder, settings: Int4Settings, layer: int, together: int
    ) -> None:
        super().__init__(weights, folder, settings, layer)
        self.together = together
        feedback = settings.method is Method.GPTQ or settings.then_gptq
        self._solve_group = solver.solve if feedback else solver.round_weighted

    def experts(self, numbers: Sequence[int], rows: Sequence[ExpertRows]) -> list[Expert]:
        """Quantize the experts `numbers`, write them, and return them as they will be served."""
        gate_up = torch.cat([self._matrices(role, numbers) for role in ROLES[:2]], 1)
        down = self._matrices(ROLES[2], numbers)
        exact = Expert(gate_up, down)
        factors = self._factors(exact, rows)
        served = self._gate_up_group(numbers, exact, factors, rows)
        served_down = self._down_group(numbers, exact, served, factors, rows)
        for number, some in zip(numbers, rows, strict=True):
            self._records["rows"][number] = some.count
        dtype = self._weights.dtype
        return [Expert(one.to(dtype), other.to(dtype)) for one, other in zip(served, served_down, strict=True)]

    def _matrices(self, role: str, numbers: Sequence[int]) -> torch.Tensor:
        """A role's matrices of some experts, float32 [E, N, K] on the device; FP8 is decoded there."""
        tensor = self._weights.tensor(role, self._layer)
        reader, device = self._weights.reader, self._weights.device
        sources = [(tensor.sources[number], tensor.scales[number]) for number in numbers]
        if not reader.is_fp8(sources[0][0]):
            read = [torch.from_numpy(reader.read_rows(source, scale)) for source, scale in sources]
            return torch.stack(read).to(device)
        rows, columns = tensor.source_shape
        # Pinned, so that a copy to the card goes at the bus's speed while the next matrix is read.
        codes = torch.empty(len(sources), rows, columns, dtype=torch.uint8, pin_memory=device.type == "cuda")
        scales = []
        for place, (source, scale) in enumerate(sources):
            assert scale is not None
            stored, blocks = reader.read_fp8(source, scale, (0, rows))
            np.copyto(codes[place].numpy(), stored)
            scales.append(torch.from_numpy(blocks))
        values = codes.to(device, non_blocking=True).view(torch.float8_e4m3fn).float()
        height, width = reader.block
        spread = torch.stack(scales).to(device).repeat_interleave(height, 1).repeat_interleave(width, 2)
        values *= spread[:, :rows, :columns]
        return values

    def _factors(self, exact: Expert, rows: Sequence[ExpertRows]) -> torch.Tensor:
        """AWQ's factors between w3 and w2 of every expert, [E, W]."""
        experts, width = len(rows), exact.down.shape[2]
        if self._settings.method is not Method.AWQ:
            return torch.ones(experts, width, device=exact.down.device)
        found = [
            self._middle_factors(Expert(gate_up.cpu(), down.cpu()), some)
            for gate_up, down, some in zip(exact.gate_up, exact.down, rows, strict=True)
        ]
        return torch.stack(found).to(exact.down.device)

    def _gate_up_group(
        self, numbers: Sequence[int], exact: Expert, factors: torch.Tensor, rows: Sequence[ExpertRows]
    ) -> torch.Tensor:
        """As `_gate_up`, [E, 2 W, H]."""
        device, (_, height, width) = exact.gate_up.device, exact.gate_up.shape
        columns = torch.ones(width) if self._scaling is None else self._scaling.factors
        columns = columns.to(device)
        target = exact.gate_up * columns
        target[:, height // 2 :] /= factors[:, :, None]
        entering = Grams.empty(len(rows), width, device)
        for part, counts in padded_parts(rows):
            entering.add(part, counts)
        hessians = shrunk(entering.mean(), entering.rows, self._shared.to(device))
        hessians /= torch.outer(columns, columns)
        solutions = self._solve_group(target, hessians, self._settings.grid)
        self._write_group(solutions, target, numbers, ROLES[:2], 0)
        return solutions.dequantized() / columns

    def _down_group(
        self,
        numbers: Sequence[int],
        exact: Expert,
        served: torch.Tensor,
        factors: torch.Tensor,
        rows: Sequence[ExpertRows],
    ) -> torch.Tensor:
        """As `_down`, [E, H, W]."""
        device, width, dtype = exact.down.device, exact.down.shape[2], self._weights.dtype
        passing, cross = (Grams.empty(len(rows), width, device) for _ in range(2))
        original, quantized, divisors = (tensor.to(dtype) for tensor in (exact.gate_up, served, factors))
        for part, counts in padded_parts(rows):
            before = _middle(part, original) / divisors[:, None, :]
            after = _middle(part, quantized)
            fine = before.isfinite().all(2) & after.isfinite().all(2)
            before, after = (torch.where(fine[..., None], values, 0) for values in (before, after))
            left = counts - (~fine).sum(1)  # what fills up is finite
            passing.add(after, left)
            cross.add(before, left, after)
        own = passing.mean()
        damping = BENDING * width / passing.rows.clamp(min=1)
        target = retargeted(exact.down * factors[:, None, :], cross.mean(), own, damping)
        hessians = shrunk(own, passing.rows, torch.diag_embed(own.diagonal(dim1=1, dim2=2)))
        solutions = self._solve_group(target, hessians, self._settings.grid)
        self._write_group(solutions, target, numbers, ROLES[2:], 1)
        return solutions.dequantized()

    def _write_group(
        self, solutions: Solutions, target: torch.Tensor, numbers: Sequence[int], roles: Sequence[str], record: int
    ) -> None:
        """Write the matrices `roles`, which lie above each other in `target`, of every expert."""
        finite = target.isfinite().all(2).all(1).tolist()
        for place, number in enumerate(numbers):
            solution = solutions.solution(place) if finite[place] else None
            if solution is None:
                raise self._not_finite(roles[0], number)
            self._count_unreachable(target[place].cpu().numpy(), solution)
            self._record(solution, number, record)
            height = target.shape[1] // len(roles)
            for part, role in enumerate(roles):
                self._write(number, role, rows_of(solution.quantized, slice(part * height, (part + 1) * height)))


def padded_parts(rows: Sequence[ExpertRows]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield what enters several experts, [E, m, H] at a time, and how many rows of each are no filling, int64 [E]."""
    longest = max(some.count for some in rows)
    for first in range(0, longest, EXPERT_ROWS):
        last = min(first + EXPERT_ROWS, longest)
        parts = [some.at(torch.arange(min(first, some.count), min(last, some.count))) for some in rows]
        filled = nn.utils.rnn.pad_sequence(parts, batch_first=True)
        yield filled, torch.tensor([len(part) for part in parts], device=filled.device)


def _middle(rows: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """What enters w2 when `rows` [E, m, H] enter w1 and w3 `gate_up` [E, 2 W, H]: [E, m, W]."""
    gate, up = torch.bmm(rows, gate_up.mT).chunk(2, dim=-1)
    return nn.functional.silu(gate).mul_(up)

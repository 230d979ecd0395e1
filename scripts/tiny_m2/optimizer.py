"""Muon for the matrices (orthogonalised momentum, batched over equal shapes), Adam for everything else."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from tiny_m2.model import TinyM2

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(batch: Tensor, steps: int = 5) -> Tensor:
    """Push all singular values of each matrix in [B, R, C], R <= C, towards one by a quintic iteration in bfloat16."""
    a, b, c = _COEFFICIENTS
    x = (batch / (batch.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(torch.bfloat16)
    for _ in range(steps):
        gram = torch.bmm(x, x.transpose(1, 2))
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, update, x, beta=a)
    return x.float()


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates; a stacked parameter [E, n * H, H] is treated as square matrices."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters; matrices of equal shape go through one batched iteration."""
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                rows = parameter.shape[-1] if parameter.dim() == 3 else parameter.shape[-2]
                weight = parameter.view(-1, rows, parameter.shape[-1])
                shapes[tuple(weight.shape[1:])].append((weight, update.view(weight.shape)))
            for (rows, columns), pairs in shapes.items():
                self._apply(group, pairs, rows, columns)

    def _apply(self, group: dict, pairs: list[tuple[Tensor, Tensor]], rows: int, columns: int) -> None:
        batch = torch.cat([update for _, update in pairs])
        update = orthogonalise(batch.mT).mT if rows > columns else orthogonalise(batch)
        scale = group["lr"] * max(1.0, rows / columns) ** 0.5
        for (weight, _), piece in zip(pairs, update.split([len(weight) for weight, _ in pairs]), strict=True):
            weight.mul_(1 - group["lr"] * group["decay"]).sub_(piece, alpha=scale)


def make_optimizers(model: TinyM2, matrix_rate: float, other_rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon over the attention and expert matrices and fused Adam over the rest.

    The embedding starts at unit size, so that later layers still see which token stands where; its rate is higher.
    """
    groups: dict[str, list[nn.Parameter]] = {"matrix": [], "embed": [], "scale": [], "other": []}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            groups["scale"].append(parameter)
        elif name.startswith("layers.") and not name.endswith("gate"):
            groups["matrix"].append(parameter)
        else:
            groups["embed" if name == "embed" else "other"].append(parameter)
    factors = {"embed": 2.0, "scale": 2.0, "other": 1.0}
    adam = [{"params": groups[name], "lr": factor * other_rate} for name, factor in factors.items()]
    return [Muon(groups["matrix"], matrix_rate), torch.optim.Adam(adam, betas=(0.9, 0.95), fused=True)]

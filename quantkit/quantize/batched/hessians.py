"""What `quantize.hessian` does, for many experts at once: tensors have the experts in front, on any device."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Grams:
    """Sums of x x^T over the rows of each expert, or of y x^T for pairs of rows: `total` float32 [E, K, K].

    `rows` int64 [E] counts them.
    """

    total: torch.Tensor
    rows: torch.Tensor

    @classmethod
    def empty(cls, experts: int, width: int, device: torch.device) -> Grams:
        """Of no rows."""
        return cls(
            torch.zeros(experts, width, width, device=device), torch.zeros(experts, dtype=torch.int64, device=device)
        )

    def add(self, rows: torch.Tensor, counts: torch.Tensor, others: torch.Tensor | None = None) -> None:
        """Take in `rows` [E, M, K], of which `counts` [E] are none of the zeros that fill up; `others` as in `Gram`."""
        left = rows.float()
        self.total.baddbmm_(left.mT, left if others is None else others.float())
        self.rows += counts

    def mean(self) -> torch.Tensor:
        """The sums over the numbers of rows, [E, K, K]; zeros where there were none."""
        return self.total / self.rows.clamp(min=1)[:, None, None]


def shrunk(own: torch.Tensor, rows: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """Pull each of `own` [E, K, K], means over `rows` [E] rows, toward `prior` [K, K] or [E, K, K].

    As `hessian.shrunk` does with one.
    """
    columns = own.shape[-1]
    share = (2 * columns / (rows.double() + 2 * columns)).square().float()
    return torch.lerp(own, prior.expand_as(own), share[:, None, None])


def retargeted(
    weights: torch.Tensor, cross: torch.Tensor, hessians: torch.Tensor, damping: torch.Tensor
) -> torch.Tensor:
    """Bend `weights` [E, N, K] as `hessian.retargeted` does, with `damping` [E].

    Unchanged where nothing can be factorized.
    """
    damped = hessians + torch.diag_embed((damping * _mean_diagonal(hessians))[:, None].expand(hessians.shape[:2]))
    lower, definite = cholesky(damped)
    shift = torch.bmm(weights, cross - hessians)
    found = weights + torch.cholesky_solve(shift.mT, lower).mT
    return torch.where(definite[:, None, None], found, weights)


@dataclass(frozen=True)
class Feedbacks:
    """`Feedback` of each expert: `order` int64 [E, K], `factors` [E, K, K], `cost` [E, K] and `damping` float64 [E].

    The damping is NaN where none made the Hessian definite; all else is of no use there.
    """

    order: torch.Tensor
    factors: torch.Tensor
    cost: torch.Tensor
    damping: torch.Tensor


def feedbacks(hessians: torch.Tensor, ladder: tuple[float, ...]) -> Feedbacks:
    """Factorize `hessians` [E, K, K], each with the first damping of `ladder` that makes it definite."""
    order = hessians.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    backward = order.flip(1)
    numbers = torch.arange(len(hessians), device=hessians.device)[:, None, None]
    matrices = hessians[numbers, backward[:, :, None], backward[:, None, :]]
    means = _mean_diagonal(hessians)
    factors, damping = torch.zeros_like(matrices), torch.full_like(means, torch.nan, dtype=torch.float64)
    for step in ladder:
        open_ones = damping.isnan().nonzero().flatten()
        if not len(open_ones):
            break
        damped = matrices[open_ones]
        damped.diagonal(dim1=1, dim2=2).add_(step * means[open_ones, None])
        lower, definite = cholesky(damped)
        factors[open_ones[definite]] = lower[definite].flip(1, 2)
        damping[open_ones[definite]] = step
    root = factors.diagonal(dim1=1, dim2=2).clone()
    cost = torch.empty_like(root).scatter_(1, order, root.square())
    return Feedbacks(order, factors.div_(root[:, None, :]), cost, damping)


def cholesky(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The lower factors of symmetric `matrices` [E, K, K], and which of them are definite and finite, bool [E].

    The factor of any other is that of the unit matrix.
    """
    lower, failed = torch.linalg.cholesky_ex(matrices)
    definite = (failed == 0) & lower.diagonal(dim1=1, dim2=2).isfinite().all(1)
    unit = torch.eye(matrices.shape[-1], device=matrices.device)
    return torch.where(definite[:, None, None], lower, unit), definite


def _mean_diagonal(hessians: torch.Tensor) -> torch.Tensor:
    """The mean of each diagonal, float32 [E]; 1 where nothing ever entered."""
    means = hessians.diagonal(dim1=1, dim2=2).double().mean(1)
    return torch.where(means > 0, means, 1.0).float()

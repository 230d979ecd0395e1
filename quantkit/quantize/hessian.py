"""The curvature of an output error: X^T X of what enters a matrix, made safe to factorize."""

from __future__ import annotations

from dataclasses import dataclass

import torch


class Gram:
    """The sum of x x^T over rows that come in parts, float32 [K, K]; or of y x^T for pairs of rows."""

    def __init__(self) -> None:
        self.total = torch.zeros(1, 1)
        self.rows = 0

    def add(self, rows: torch.Tensor, others: torch.Tensor | None = None) -> None:
        """Take in `rows` [M, K]; with `others` [M, K] these are the x, and `rows` the y."""
        left = rows.float()
        right = left if others is None else others.float()
        self.total = torch.addmm(self.total, left.T, right) if self.rows else left.T @ right
        self.rows += len(rows)

    def mean(self, width: int) -> torch.Tensor:
        """The sum over the number of rows, [K, K]; zeros when there were none of `width` columns."""
        return self.total / self.rows if self.rows else torch.zeros(width, width)


def shrunk(own: torch.Tensor, rows: int, prior: torch.Tensor, strength: float) -> torch.Tensor:
    """Return `own` [K, K], a mean over `rows` rows, pulled toward `prior` [K, K] as if that were `strength` more rows.

    With few rows the prior decides, with many it vanishes; without any it is the answer.
    """
    return torch.lerp(own, prior, strength / (rows + strength))


def retargeted(weights: torch.Tensor, cross: torch.Tensor, hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the weights that give the same output when their inputs y have become x: least squares, [N, K].

    `cross` [K, K] is the mean of y x^T, `hessian` that of x x^T; `damping` relative to its mean diagonal keeps what the
    inputs do not decide near `weights` [N, K]. Comes back unchanged where the Hessian cannot be factorized.
    """
    mean = float(hessian.diagonal().double().mean())
    damped = hessian.clone()
    damped.diagonal().add_(damping * (mean if mean > 0 else 1.0))
    lower, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        return weights
    shift = weights @ (cross - hessian)
    return weights + torch.cholesky_solve(shift.T, lower).T


@dataclass(frozen=True)
class Feedback:
    """How an error made in one column is taken up by later ones.

    `order` int64 [K] is the order of the columns; `factors` [K, K], strictly upper triangular in that order: column j
    becomes w_j + sum_{i<j} (w_i - q_i) factors[i, j] before it is rounded. `damping` is what was added to the diagonal,
    relative to its mean.
    """

    order: torch.Tensor
    factors: torch.Tensor
    damping: float


def feedback(hessian: torch.Tensor, ladder: tuple[float, ...]) -> Feedback | None:
    """Factorize `hessian` [K, K], symmetric, with the first damping of `ladder` that makes it definite.

    Columns come in the order of falling diagonal (static activation order). With H = (F + I) D (F + I)^T, F strictly
    upper triangular, the factors are F itself: one Cholesky factorization of the reversed matrix and no inverse. That
    rounding with this feedback is GPTQ (Frantar et al., arXiv 2210.17323) was shown for QuIP (Chee et al., arXiv
    2307.13304, "LDLQ"). Returns None when no damping helps: the matrix is not finite.
    """
    diagonal = hessian.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True)
    backward = order.flip(0)
    reversed_hessian = hessian[backward][:, backward]
    mean = float(diagonal.double().mean())
    if not mean > 0:  # nothing ever entered: all columns are alike
        mean = 1.0
    added = 0.0
    for damping in ladder:
        reversed_hessian.diagonal().add_((damping - added) * mean)
        added = damping
        lower, failed = torch.linalg.cholesky_ex(reversed_hessian)
        if int(failed) == 0 and bool(torch.isfinite(lower.diagonal()).all()):
            upper = lower.flip(0, 1)
            return Feedback(order, torch.triu(upper / upper.diagonal(), diagonal=1), damping)
    return None

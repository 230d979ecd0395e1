"""The curvature of an output error: X^T X of what enters a matrix, made safe to factorize."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Columns of a matrix that are factorized between two matrix products.
PANEL = 256


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


def shrunk(own: torch.Tensor, rows: int, prior: torch.Tensor) -> torch.Tensor:
    """Return `own` [K, K], a mean over `rows` rows, pulled toward `prior` [K, K] where these are few for the columns.

    The prior's share is the square of 2 K / (rows + 2 K): all without rows, a quarter with 2 per column, and next to
    nothing with many, where a share that falls like 1 / rows would still act as damping.
    """
    columns = len(own)
    return torch.lerp(own, prior, (2 * columns / (rows + 2 * columns)) ** 2)


def retargeted(weights: torch.Tensor, cross: torch.Tensor, hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the weights that give the same output when their inputs y have become x: least squares, [N, K].

    `cross` [K, K] is the mean of y x^T, `hessian` that of x x^T; `damping` relative to its mean diagonal keeps what the
    inputs do not decide near `weights` [N, K]. Comes back unchanged where the Hessian cannot be factorized.
    """
    mean = float(hessian.diagonal().double().mean())
    damped = hessian.clone()
    damped.diagonal().add_(damping * (mean if mean > 0 else 1.0))
    if not cholesky_(damped):
        return weights
    shift = weights @ (cross - hessian)
    return weights + torch.cholesky_solve(shift.T, damped).T


@dataclass(frozen=True)
class Feedback:
    """How an error made in one column is taken up by later ones.

    `order` int64 [K] is the order of the columns; `factors` [K, K] are in that order and have ones on the diagonal and
    zeros below: column j becomes w_j + sum_{i<j} (w_i - q_i) factors[i, j] before it is rounded. `cost` float32 [K], in
    the natural order, is what an error of 1 in a column then costs: the part of its input that no later column can
    stand in for. `damping` is what was added to the diagonal, relative to its mean.
    """

    order: torch.Tensor
    factors: torch.Tensor
    cost: torch.Tensor
    damping: float


def feedback(hessian: torch.Tensor, ladder: tuple[float, ...], together: tuple[int, ...] = ()) -> Feedback | None:
    """Factorize `hessian` [K, K], symmetric, with the first damping of `ladder` that makes it definite.

    Columns come in the order of falling diagonal (static activation order); runs of so many columns as `together` says,
    the larger first, stay together and come in the order of their sums. With H = F D F^T, F unit upper triangular, the
    factors are F itself: one Cholesky factorization of the reversed matrix and no inverse. That rounding with this
    feedback is GPTQ (Frantar et al., arXiv 2210.17323) was shown for QuIP (Chee et al., arXiv 2307.13304, "LDLQ").
    Returns None when no damping helps: the matrix is not finite.
    """
    diagonal = hessian.diagonal()
    order = falling_order(diagonal, together)
    backward = order.flip(0)
    mean = float(diagonal.double().mean())
    if not mean > 0:  # nothing ever entered: all columns are alike
        mean = 1.0
    for damping in ladder:
        matrix = hessian[backward].index_select(1, backward)
        matrix.diagonal().add_(damping * mean)
        if not cholesky_(matrix):
            continue
        factors = matrix.flip(0, 1)
        root = factors.diagonal().clone()
        cost = torch.empty_like(root)
        cost[order] = root.square()
        return Feedback(order, factors.div_(root), cost, damping)
    return None


def falling_order(diagonal: torch.Tensor, together: tuple[int, ...]) -> torch.Tensor:
    """Columns by falling `diagonal` [K], int64 [K]; runs of `together` columns, each dividing the one before, as one.

    A run that does not divide K is passed over.
    """
    order = torch.arange(len(diagonal))[None]  # [runs, columns of each]
    for size in (*(size for size in together if len(diagonal) % size == 0), 1):
        runs = order.view(len(order), -1, size)
        places = torch.argsort(diagonal[runs].sum(-1), dim=1, descending=True, stable=True)
        order = runs.gather(1, places[..., None].expand_as(runs)).reshape(-1, size)
    return order.flatten()


def cholesky_(matrix: torch.Tensor) -> bool:
    """Replace symmetric `matrix` [K, K] by its lower Cholesky factor, zeros above; tell if it was definite and finite.

    In panels, most of the work a matrix product: three times as fast as LAPACK's on one core.
    """
    width = len(matrix)
    for first in range(0, width, PANEL):
        last = min(first + PANEL, width)
        panel = matrix[first:, first:last]
        if first:
            panel.sub_(matrix[first:, :first] @ matrix[first:last, :first].T)
        corner, failed = torch.linalg.cholesky_ex(panel[: last - first])
        if int(failed) or not bool(torch.isfinite(corner.diagonal()).all()):
            return False
        panel[: last - first] = corner
        below = panel[last - first :]
        if len(below):
            below.copy_(torch.linalg.solve_triangular(corner.T, below, upper=True, left=False))
        matrix[first:last, last:] = 0
    return True

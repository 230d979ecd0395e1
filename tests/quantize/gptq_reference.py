"""GPTQ in float64, column by column, as arXiv 2210.17323 has it; and random problems to solve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantkit.arrays import Float32
from quantkit.quantize.integers import IntegerGrid


@dataclass(frozen=True)
class Problem:
    """Weights float32 [N, K] and the mean of x x^T of their inputs, float32 [K, K]."""

    weights: Float32
    hessian: Float32


def problem(rows: int, width: int, *, inputs: int | None = None, seed: int = 0) -> Problem:
    """Gaussian weights, and inputs (4 K of them) that lean on few directions, with channels of very different size."""
    generator = np.random.default_rng([seed, rows, width])
    weights = (generator.standard_normal((rows, width)) * 0.02).astype(np.float32)
    return Problem(weights, hessian_of(correlated(4 * width if inputs is None else inputs, width, generator)))


def correlated(rows: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """Inputs float64 [rows, width] whose spectrum falls off, as those of a trained model do."""
    spectrum = np.exp(-np.arange(width) / (width / 6)) + 0.02
    mixing = generator.standard_normal((width, width)) * spectrum[:, None] / np.sqrt(width)
    return generator.standard_normal((rows, width)) @ mixing * np.exp(generator.standard_normal(width) * 0.5)


def hessian_of(inputs: np.ndarray) -> Float32:
    return (inputs.T @ inputs / len(inputs)).astype(np.float32)


def wanted_quotients(
    given: Problem, damping: float, grid: IntegerGrid, scales: Float32, zeros: np.ndarray, codes: np.ndarray
) -> np.ndarray:
    """What the paper's procedure is about to round, weight / scale, float64 [N, K] in natural order.

    Columns come in the order of falling diagonal. At each of them the columns before have the given `codes` [N, K]:
    so the quotients of codes that follow the procedure round to these codes, and one tie does not spoil the rest.
    """
    hessian = given.hessian.astype(np.float64)
    order = np.argsort(-hessian.diagonal(), kind="stable")
    hessian = hessian[np.ix_(order, order)]
    hessian += damping * hessian.diagonal().mean() * np.eye(len(order))
    inverse = np.linalg.inv(hessian)
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
    weights = given.weights.astype(np.float64)[:, order]
    quotients = np.empty_like(weights)
    for place, column in enumerate(order):
        group = column // grid.columns(len(order))
        scale = scales[:, group].astype(np.float64)
        quotients[:, column] = weights[:, place] / scale
        quantized = (codes[:, column].astype(np.float64) - zeros[:, group]) * scale
        error = (weights[:, place] - quantized) / upper[place, place]
        weights[:, place:] -= np.outer(error, upper[place, place:])
    return quotients


def rounded_codes(quotients: np.ndarray, grid: IntegerGrid, zeros: np.ndarray) -> np.ndarray:
    """Codes [N, K] of quotients [N, K]: nearest, within the grid."""
    spread = zeros.astype(np.float64).repeat(grid.columns(quotients.shape[1]), axis=1)
    return np.clip(np.rint(quotients) + spread, 0, grid.levels - 1).astype(np.uint8)


def distance_to_tie(quotients: np.ndarray) -> np.ndarray:
    """How far from the middle between two integers, from 0 to 0.5."""
    return np.abs(quotients - np.floor(quotients) - 0.5)

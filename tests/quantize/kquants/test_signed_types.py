"""The types without an offset against ggml's own search: errors as ggml's dequantizers see them, odd weights, bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from quantkit.arrays import Bytes, Float32
from quantkit.checkpoint.dequant import dequantize_fp8_blocks
from quantkit.formats.gguf.blocks.table import FORMATS
from quantkit.quantize import ggml, ggml_blocks
from quantkit.quantize.kquants.quantize import quantize
from quantkit.quantize.kquants.rows import Rows
from quantkit.quantize.kquants.signed_types import SEARCHES
from quantkit.quantize.kquants.tiles import LANES

SEARCHED = sorted(set(SEARCHES) - {"Q8_0"})
COLUMNS = 1024
# Parts of ggml's error that were measured on Gaussian weights, with importance and without, and room for another seed.
REACHED = {
    "Q3_K": (0.88, 0.95),
    "Q6_K": (0.70, 0.90),
    "IQ4_XS": (0.81, 0.95),
    "IQ4_NL": (0.82, 0.95),
    "Q4_0": (0.86, 0.92),
    "Q5_0": (0.83, 0.90),
}
ROOM = 0.02
# What float32 sums do not tell apart, as a part of the weights' own size.
UNSEEN = 2e-5


def gaussian(rows: int = 96, columns: int = COLUMNS) -> Float32:
    return np.random.default_rng(11).standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)


def heavy_tailed() -> Float32:
    return (np.random.default_rng(12).standard_t(3, (96, COLUMNS)) * 0.02).astype(np.float32)


def with_outliers() -> Float32:
    weights = gaussian()
    weights[::10, ::97] *= 50
    weights[5] *= np.float32(0.001)
    return weights


def trained(tiny_m2: Path) -> Float32:
    """An expert of the fixture: FP8, so that its weights lie on a grid of their own."""
    name = "model.layers.2.block_sparse_moe.experts.5.w1.weight"
    for shard in sorted(tiny_m2.glob("*.safetensors")):
        with safe_open(shard, "pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118
                codes = tensors.get_tensor(name).view(torch.uint8).numpy()
                return dequantize_fp8_blocks(codes, tensors.get_tensor(f"{name}_scale_inv").numpy(), (128, 128))
    raise AssertionError(f"no {name}")


def importance(kind: str, columns: int = COLUMNS) -> Float32 | None:
    """Mean squares over some orders of magnitude, as a layer's inputs have them; every third column never saw any."""
    if kind == "none":
        return None
    squares = np.exp(np.random.default_rng(13).standard_normal(columns) * 2).astype(np.float32)
    return np.where(np.arange(columns) % 3 == 0, 0, squares).astype(np.float32) if kind == "zeros" else squares


def ggmls_weights(name: str, weights: Float32, columns_weight: Float32 | None) -> Float32:
    """What ggml's search for `name` weighs squared errors by [R, K], see ggml-quants.c."""
    squares = np.square(weights.astype(np.float64))
    if columns_weight is None:
        return np.ones_like(squares) if name in ("Q4_0", "Q5_0") else squares
    if name == "Q6_K":
        return np.broadcast_to(columns_weight, weights.shape)
    shared, factor = (weights.shape[1], 1) if name in ("Q4_0", "Q5_0") else (FORMATS[name].block, 2)
    means = squares.reshape(len(weights), -1, shared).mean(2).repeat(shared, axis=1)
    return columns_weight * np.sqrt(factor * means + squares)


def errors(name: str, weights: Float32, packed: Bytes, columns_weight: Float32 | None) -> tuple[float, float]:
    """Sum of squared errors, weighted by importance, and as ggml weighs it."""
    assert ggml.valid(packed, name)
    squares = np.square(ggml_blocks.dequantize(packed, name, weights.shape[1]).astype(np.float64) - weights)
    plain = squares if columns_weight is None else squares * columns_weight
    return float(plain.sum()), float((squares * ggmls_weights(name, weights, columns_weight)).sum())


def parts_of_ggmls(name: str, weights: Float32, columns_weight: Float32 | None) -> tuple[float, float]:
    ours = errors(name, weights, quantize(Rows(values=weights), name, columns_weight), columns_weight)
    theirs = errors(name, weights, ggml.quantize(weights, name, columns_weight), columns_weight)
    return ours[0] / theirs[0], ours[1] / theirs[1]


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.parametrize("kind", ["spread", "zeros", "none"])
@pytest.mark.parametrize("source", ["gaussian", "heavy_tailed", "with_outliers", "trained"])
def test_error_is_not_above_ggmls(name: str, kind: str, source: str, tiny_m2: Path) -> None:
    weights = trained(tiny_m2) if source == "trained" else globals()[source]()
    plain, as_ggml_weighs = parts_of_ggmls(name, weights, importance(kind, weights.shape[1]))
    assert plain <= 1
    # Without importance ggml weighs by x^2, so all that counts for it beside a weight 50 times as large is that one.
    assert as_ggml_weighs <= (1.02 if (name, kind, source) == ("IQ4_NL", "none", "with_outliers") else 1)


@pytest.mark.parametrize("name", SEARCHED)
def test_search_reaches_what_was_measured(name: str) -> None:
    weighted, unweighted = REACHED[name]
    assert parts_of_ggmls(name, gaussian(), importance("spread"))[0] < weighted + ROOM
    assert parts_of_ggmls(name, gaussian(), None)[0] < unweighted + ROOM


def odd_weights(columns: int) -> dict[str, Float32]:
    ordinary = np.random.default_rng(14).standard_normal((3, columns)).astype(np.float32)
    single = np.zeros((2, columns), np.float32)
    single[:, 5] = 65504, -65504
    beside = ordinary * np.float32(0.01)
    beside[:, 7] = 60000
    sizes = np.repeat(np.float32(10) ** np.linspace(-9, 4, columns // 32), 32)
    return {
        "zeros": np.zeros((2, columns), np.float32),
        "constant": np.full((2, columns), 0.37, np.float32),
        "constant and negative": np.full((2, columns), -0.37, np.float32),
        "one huge": single,
        "one huge beside small": beside,
        "all largest": np.full((2, columns), 65504, np.float32),
        "near the largest": np.clip(ordinary * 30000, -65504, 65504),
        "negative": -np.abs(ordinary),
        "groups of all sizes": (ordinary * sizes).astype(np.float32),
        **{f"around 1e{power}": ordinary * np.float32(10.0**power) for power in (-5, -6, -7, -8, -12, -20, -38, -44)},
    }


@pytest.mark.parametrize("name", sorted(SEARCHES))
@pytest.mark.parametrize("blocks", [1, 5])
@pytest.mark.parametrize("kind", ["spread", "zeros", "none"])
def test_odd_weights(name: str, blocks: int, kind: str) -> None:
    """Blocks stay finite, and no case is worse than a little above ggml's error in what can be told apart."""
    columns = FORMATS[name].block * blocks
    columns_weight = importance(kind, columns)
    for case, weights in odd_weights(columns).items():
        plain = errors(name, weights, quantize(Rows(values=weights), name, columns_weight), columns_weight)[0]
        theirs = errors(name, weights, ggml.quantize(weights, name, columns_weight), columns_weight)[0]
        size = np.square(weights.astype(np.float64)) * (1 if columns_weight is None else columns_weight)
        assert plain <= 1.1 * theirs + UNSEEN * size.sum(), case


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.parametrize("factor", [1e-15, 1e10])
def test_size_of_importance_does_not_matter(name: str, factor: float) -> None:
    columns_weight = importance("spread")
    assert columns_weight is not None
    packed = quantize(Rows(values=gaussian()), name, columns_weight)
    scaled = quantize(Rows(values=gaussian()), name, (columns_weight * np.float32(factor)).astype(np.float32))
    first, second = (errors(name, gaussian(), each, columns_weight)[0] for each in (packed, scaled))
    assert second == pytest.approx(first, rel=1e-3)


@pytest.mark.parametrize("weights", [gaussian, heavy_tailed, with_outliers])
def test_q8_0_has_ggmls_bytes(weights: object) -> None:
    assert callable(weights)
    np.testing.assert_array_equal(quantize(Rows(values=weights()), "Q8_0", None), ggml.quantize(weights(), "Q8_0"))


def test_q8_0_rounds_ties_as_ggml() -> None:
    """Halves of a step, and what lies just below one, where adding 0.5 would round up."""
    halves = np.arange(-127, 129, dtype=np.float32).reshape(8, 32) / 2
    halves[:, 0] = 127
    below = np.nextafter(halves, np.float32(0), dtype=np.float32)
    below[:, 0] = 127
    for weights in (halves, below):
        np.testing.assert_array_equal(quantize(Rows(values=weights), "Q8_0", None), ggml.quantize(weights, "Q8_0"))


@pytest.mark.parametrize("name", sorted(SEARCHES))
@pytest.mark.parametrize("kind", ["spread", "none"])
def test_rows_do_not_depend_on_those_beside_them(name: str, kind: str) -> None:
    weights, columns_weight = gaussian(LANES + 7), importance(kind)
    whole = quantize(Rows(values=weights), name, columns_weight)
    for first, behind in ((0, 1), (3, LANES + 1), (LANES - 1, LANES + 7)):
        part = quantize(Rows(values=weights[first:behind]), name, columns_weight)
        np.testing.assert_array_equal(part, whole[first:behind])


@pytest.mark.parametrize("name", sorted(SEARCHES))
def test_fp8_rows_give_the_bytes_of_their_values(name: str) -> None:
    random = np.random.default_rng(15)
    codes = random.integers(0, 255, (LANES + 9, 512)).astype(np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0
    rows = Rows(codes=codes, scale=random.random((2, 4)).astype(np.float32) / 1000, first_row=100)
    columns_weight = importance("spread", 512)
    np.testing.assert_array_equal(
        quantize(rows, name, columns_weight), quantize(Rows(values=rows.float32()), name, columns_weight)
    )

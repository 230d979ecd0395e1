"""Q2_K, Q4_K and Q5_K against ggml's own search: errors as ggml's dequantizers see them, odd weights, equal bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from quantkit.arrays import Bytes, Float32
from quantkit.checkpoint.index import open_checkpoint
from quantkit.checkpoint.reader import Reader
from quantkit.formats.gguf.blocks.packing import unpack
from quantkit.formats.gguf.blocks.table import FORMATS
from quantkit.quantize import ggml, ggml_blocks
from quantkit.quantize.kquants.found import buffers, packed
from quantkit.quantize.kquants.minimum_types import SEARCHES
from quantkit.quantize.kquants.quantize import quantize
from quantkit.quantize.kquants.rows import NotRepresentable, Rows
from quantkit.quantize.kquants.tiles import LANES

COLUMNS = 1024
# Errors as parts of ggml's, with importance and without, on Gaussian weights: what was measured, rounded up.
REACHED = {"Q2_K": (0.91, 0.82), "Q4_K": (0.935, 0.975), "Q5_K": (0.79, 0.905)}


def gaussian(rows: int = 96) -> Float32:
    return np.random.default_rng(21).standard_normal((rows, COLUMNS), dtype=np.float32) * np.float32(0.02)


def heavy_tailed(freedom: float) -> Float32:
    return (np.random.default_rng(22).standard_t(freedom, (96, COLUMNS)) * 0.02).astype(np.float32)


def with_outliers() -> Float32:
    weights = gaussian()
    weights[:, ::311] *= 50
    return weights


WEIGHTS = {
    "gaussian": gaussian(),
    "3 degrees of freedom": heavy_tailed(3),
    "4 degrees of freedom": heavy_tailed(4),
    "outliers": with_outliers(),
}


def importance(kind: str, columns: int = COLUMNS) -> Float32 | None:
    """Mean squares of inputs over some orders of magnitude; "zeros": columns that no input reached, none in groups."""
    if kind == "none":
        return None
    found = np.exp(2 * np.random.default_rng(23).standard_normal(columns)).astype(np.float32)
    return np.where(np.arange(columns) % 5 == 1, np.float32(0), found) if kind == "zeros" else found


KINDS = ("spread", "zeros", "none")


def errors(name: str, weights: Float32, blocks: Bytes, columns_weight: Float32 | None) -> tuple[float, float]:
    """The sum of squared errors by importance, and by what ggml's search minimizes (source: ggml-quants.c)."""
    assert ggml.valid(blocks, name)
    exact = weights.astype(np.float64)
    squares = (ggml_blocks.dequantize(blocks, name, weights.shape[1]) - exact) ** 2
    group = FORMATS[name].group

    def mean_square(run: int) -> np.ndarray:
        return (exact**2).reshape(len(exact), -1, run).mean(-1).repeat(run, axis=1)

    if columns_weight is not None:
        squares *= columns_weight
        own = np.sqrt((1 if name == "Q2_K" else 2) * mean_square(256) + exact**2)
    else:
        own = abs(exact) if name == "Q2_K" else abs(exact) + np.sqrt(mean_square(group))
    return squares.sum(), (squares * own).sum()


def parts_of_ggmls(name: str, rows: Rows, columns_weight: Float32 | None) -> tuple[float, float]:
    weights = rows.float32()
    ours = errors(name, weights, quantize(rows, name, columns_weight), columns_weight)
    theirs = errors(name, weights, ggml.quantize(weights, name, columns_weight), columns_weight)
    return ours[0] / theirs[0], ours[1] / theirs[1]


def trained(folder: Path) -> Iterator[tuple[str, Rows]]:
    """Every eighth of the checkpoint's FP8 matrices."""
    checkpoint = open_checkpoint(folder)
    matrices = sorted(name for name in checkpoint.tensors if f"{name}_scale_inv" in checkpoint.tensors)
    with Reader(checkpoint, (128, 128)) as reader:
        for name in matrices[::8]:
            codes, scale = reader.read_fp8(name, f"{name}_scale_inv", (0, checkpoint.tensors[name].shape[0]))
            yield name, Rows(codes=codes, scale=scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", SEARCHES)
def test_errors_are_below_ggmls(name: str, weights: str, kind: str) -> None:
    by_importance, by_ggml = parts_of_ggmls(name, Rows(WEIGHTS[weights]), importance(kind))
    assert by_importance < 1
    assert by_ggml < 1


@pytest.mark.parametrize("name", SEARCHES)
def test_errors_are_what_was_reached(name: str) -> None:
    weighted, unweighted = REACHED[name]
    assert parts_of_ggmls(name, Rows(gaussian()), importance("spread"))[0] < weighted
    assert parts_of_ggmls(name, Rows(gaussian()), None)[0] < unweighted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SEARCHES)
def test_errors_on_trained_weights_are_below_ggmls(name: str, kind: str, tiny_m2: Path) -> None:
    for tensor, rows in trained(tiny_m2):
        parts = parts_of_ggmls(name, rows, importance(kind, rows.shape[1]))
        assert max(parts) < 1, tensor


def odd_rows() -> dict[str, Float32]:
    ordinary = np.random.default_rng(24).standard_normal(COLUMNS).astype(np.float32)
    single = np.zeros(COLUMNS, np.float32)
    single[100] = 65504
    rows = {
        "zeros": 0 * ordinary,
        "one weight": single,
        "one huge weight": single + ordinary / 100,
        "one huge negative weight": ordinary / 100 - single,
        "near the largest": np.clip(ordinary * 30000, -65504, 65504),
        "all at the ends": np.where(ordinary > 0, np.float32(65504), np.float32(-65504)),
        "negative": -abs(ordinary),
        "positive": abs(ordinary),
        "narrow and negative": ordinary / 1000 - 1,
        "constant": np.full_like(ordinary, 0.37),
        "constant and negative": np.full_like(ordinary, -0.37),
        "every other group zero": ordinary * np.repeat(np.arange(COLUMNS // 32) % 2, 32),
    }
    rows |= {f"times 1e-{power}": ordinary * np.float32(10.0**-power) for power in (4, 5, 6, 7, 8, 20, 30, 44)}
    return {name: row.astype(np.float32) for name, row in rows.items()}


@pytest.mark.parametrize("kind", [*KINDS, "minute", "gigantic"])
@pytest.mark.parametrize("name", SEARCHES)
def test_odd_rows_become_sound_blocks(name: str, kind: str) -> None:
    """Blocks are finite, and rows lose about what they lose with ggml, beside what sums in float32 cannot tell."""
    rows = odd_rows()
    weights = np.stack(list(rows.values()))
    scale = {"minute": np.float32(1e-18), "gigantic": np.float32(1e18)}.get(kind, np.float32(1))
    found = importance("spread" if kind in ("minute", "gigantic") else kind)
    blocks = quantize(Rows(weights), name, None if found is None else found * scale)
    assert ggml.valid(blocks, name)
    restored = ggml_blocks.dequantize(blocks, name, COLUMNS)
    assert not restored[0].any()
    theirs = ggml_blocks.dequantize(ggml.quantize(weights, name, found), name, COLUMNS)
    cost = np.ones(COLUMNS) if found is None else found.astype(np.float64)
    unseen = 5e-6 * (cost * weights.astype(np.float64) ** 2).sum(1)
    ours, others = ((cost * (exact - weights.astype(np.float64)) ** 2).sum(1) for exact in (restored, theirs))
    for label, lost, allowed in zip(rows, ours, 1.2 * others + unseen, strict=True):
        assert lost <= allowed, label


def test_narrow_negative_groups_keep_their_digits() -> None:
    """The targets' common part must not drown what tells them apart, as it would in sums of float32."""
    row = (np.random.default_rng(25).standard_normal((8, COLUMNS)) / 1000 - 1).astype(np.float32)
    # Far from exact: dmin is a float16, and codes of it are as coarse as the whole range of these weights.
    assert parts_of_ggmls("Q4_K", Rows(row), None)[0] < 1.5


@pytest.mark.parametrize("kind", ["spread", "none"])
@pytest.mark.parametrize("name", SEARCHES)
def test_rows_do_not_see_their_neighbours(name: str, kind: str) -> None:
    weights, columns_weight = gaussian(2 * LANES + 5), importance(kind)
    whole = quantize(Rows(weights), name, columns_weight)
    for first, end in ((0, 1), (3, LANES + 4), (LANES, 2 * LANES), (2 * LANES - 1, 2 * LANES + 5)):
        np.testing.assert_array_equal(quantize(Rows(weights[first:end]), name, columns_weight), whole[first:end])


@pytest.mark.parametrize("name", SEARCHES)
def test_blocks_do_not_see_their_neighbours(name: str) -> None:
    weights, columns_weight = gaussian(7), importance("spread")
    assert columns_weight is not None
    whole = quantize(Rows(weights), name, columns_weight).reshape(7, COLUMNS // 256, -1)
    for block in range(COLUMNS // 256):
        part = slice(block * 256, block * 256 + 256)
        alone = Rows(np.ascontiguousarray(weights[:, part]))
        np.testing.assert_array_equal(quantize(alone, name, columns_weight[part]), whole[:, block])


@pytest.mark.parametrize("name", SEARCHES)
def test_fp8_gives_the_bytes_of_its_float32(name: str, tiny_m2: Path) -> None:
    _, rows = next(trained(tiny_m2))
    columns_weight = importance("spread", rows.shape[1])
    expected = quantize(Rows(rows.float32()), name, columns_weight)
    np.testing.assert_array_equal(quantize(rows, name, columns_weight), expected)
    assert rows.codes is not None
    cut = Rows(codes=rows.codes[100:140], scale=rows.scale, first_row=100)
    np.testing.assert_array_equal(quantize(cut, name, columns_weight), expected[100:140])


@pytest.mark.parametrize("name", SEARCHES)
def test_only_ratios_of_importance_count(name: str) -> None:
    weights, columns_weight = gaussian(3), importance("spread")
    assert columns_weight is not None
    expected = quantize(Rows(weights), name, columns_weight)
    np.testing.assert_array_equal(quantize(Rows(weights), name, columns_weight * np.float32(2.0**-20)), expected)
    equal = np.full(COLUMNS, 2, np.float32)
    np.testing.assert_array_equal(quantize(Rows(weights), name, equal), quantize(Rows(weights), name))


@pytest.mark.parametrize("name", SEARCHES)
def test_every_level_is_the_nearest(name: str) -> None:
    """Of the levels that ggml reads from the stored codes none is nearer than the one that was taken."""
    format, weights = FORMATS[name], gaussian(4)
    found = unpack(quantize(Rows(weights), name, importance("spread")), format, COLUMNS)
    assert found.scale_codes is not None
    assert found.minimums is not None
    assert found.minimum_codes is not None
    each = (4, -1, 256 // format.group)
    step = found.scales.astype(float)[..., None] * found.scale_codes.reshape(each)
    offset = found.minimums.astype(float)[..., None] * found.minimum_codes.reshape(each)
    grid = step.reshape(4, -1, 1, 1) * np.array(format.levels) - offset.reshape(4, -1, 1, 1)
    distances = abs(grid - weights.reshape(4, -1, format.group, 1))
    taken = np.take_along_axis(distances, found.codes.reshape(*distances.shape[:3], 1).astype(int), -1)[..., 0]
    np.testing.assert_allclose(taken, distances.min(-1), atol=1e-7)


def test_an_infinite_scale_is_refused() -> None:
    format = FORMATS["Q4_K"]
    found = buffers(format, 256)
    found.scales[0, 3] = np.float32(70000)
    with pytest.raises(NotRepresentable, match="Q4_K"):
        packed(found, format, 4)
    assert packed(found, format, 3).shape == (3, 144)


def test_importance_of_other_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="512"):
        quantize(Rows(gaussian(1)), "Q4_K", importance("spread", 512))

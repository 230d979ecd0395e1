"""The seam to the quantizers, against gguf-py's dequantizers and torch's casts."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from quantkit.quantize import ggml
from quantkit.quantize.kquants import quantize as own
from quantkit.quantize.kquants.rows import Rows
from quantkit.quantize.rows import (
    GGML,
    OWN,
    TYPES_THAT_NEED_IMPORTANCE,
    UNWEIGHTED_TYPES,
    ImportanceMissing,
    NotRepresentable,
    quantize_rows,
)
from quantkit.recipe.mixes import WRITABLE_TYPES

OWN_TYPES = sorted(own.TYPES)
SEARCHED_TYPES = sorted(WRITABLE_TYPES - UNWEIGHTED_TYPES)

# Relative RMSE on Gaussian weights as measured with llama.cpp by others (reference table of peers), +- 3 %.
RELATIVE_RMSE = {
    "Q8_0": 0.0053,
    "Q6_K": 0.0178,
    "Q5_K": 0.0361,
    "Q4_K": 0.0713,
    "Q3_K": 0.151,
    "Q2_K": 0.296,
    "IQ4_XS": 0.0767,
    "IQ4_NL": 0.0761,
    "IQ3_S": 0.166,
    "Q4_0": 0.0859,
    "MXFP4": 0.114,
}


@pytest.fixture(scope="module")
def gaussian() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((64, 1024), dtype=np.float32)


@pytest.fixture(scope="module")
def importance() -> np.ndarray:
    """Mean squares as a layer's inputs have them: over some orders of magnitude."""
    return np.exp(np.random.default_rng(8).standard_normal(1024) * 2).astype(np.float32)


def needed(name: str, columns: int) -> np.ndarray | None:
    """Equal importance for types that cannot do without, None for the others."""
    return np.ones(columns, np.float32) if name in TYPES_THAT_NEED_IMPORTANCE else None


def restored(weights: np.ndarray, name: str, importance: np.ndarray | None) -> np.ndarray:
    return gguf.quants.dequantize(quantize_rows(Rows(weights), name, importance), gguf.GGMLQuantizationType[name])


@pytest.mark.parametrize("name", sorted(RELATIVE_RMSE))
def test_error_is_that_of_the_type(gaussian: np.ndarray, name: str) -> None:
    def rmse(kquants: str) -> float:
        packed = quantize_rows(Rows(gaussian), name, None, kquants)
        back = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name])
        return float(np.sqrt(np.mean((back - gaussian) ** 2)) / gaussian.std())

    assert rmse(GGML) == pytest.approx(RELATIVE_RMSE[name], rel=0.03)
    # A better search finds a little, but no type holds more than its bits.
    assert 0.85 * rmse(GGML) < rmse(OWN) <= rmse(GGML)


@pytest.mark.parametrize(("name", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16), ("F32", torch.float32)])
def test_casts_equal_torch(gaussian: np.ndarray, name: str, dtype: torch.dtype) -> None:
    expected = torch.from_numpy(gaussian).to(dtype).view(torch.uint8).numpy()
    np.testing.assert_array_equal(quantize_rows(Rows(gaussian), name), expected)


@pytest.mark.parametrize("name", sorted(WRITABLE_TYPES))
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_do_not_depend_on_their_neighbours(
    gaussian: np.ndarray, importance: np.ndarray, name: str, weighted: bool
) -> None:
    few, columns = gaussian[:6], importance if weighted else needed(name, 1024)
    whole = quantize_rows(Rows(few), name, columns)
    pieces = np.concatenate([quantize_rows(Rows(few[a:b]), name, columns) for a, b in ((0, 1), (1, 4), (4, 6))])
    np.testing.assert_array_equal(whole, pieces)


@pytest.mark.parametrize("name", sorted(WRITABLE_TYPES))
def test_zero_rows_stay_zero(name: str) -> None:
    assert not restored(np.zeros((2, 512), np.float32), name, needed(name, 512)).any()


@pytest.mark.parametrize("name", SEARCHED_TYPES)
def test_importance_lowers_the_error_that_counts(gaussian: np.ndarray, importance: np.ndarray, name: str) -> None:
    def weighted_error(guided: np.ndarray | None) -> float:
        return float(np.mean((restored(gaussian, name, guided) - gaussian) ** 2 * importance))

    assert weighted_error(importance) < 0.98 * weighted_error(needed(name, 1024))


@pytest.mark.parametrize("name", sorted(UNWEIGHTED_TYPES))
def test_types_without_a_search_ignore_importance(gaussian: np.ndarray, importance: np.ndarray, name: str) -> None:
    np.testing.assert_array_equal(quantize_rows(Rows(gaussian), name, importance), quantize_rows(Rows(gaussian), name))


@pytest.mark.parametrize("name", sorted(TYPES_THAT_NEED_IMPORTANCE))
def test_types_that_need_importance_are_refused_without(gaussian: np.ndarray, name: str) -> None:
    with pytest.raises(ImportanceMissing, match=f"{name} needs an importance matrix"):
        quantize_rows(Rows(gaussian), name)


@pytest.mark.parametrize("name", SEARCHED_TYPES)
@pytest.mark.parametrize("silence", [0.0, 1e-30])
@pytest.mark.parametrize("dead", [slice(256, 512), slice(256, 288), slice(256, 272), slice(0, 1024)])
def test_columns_without_importance_keep_their_weights(
    gaussian: np.ndarray, importance: np.ndarray, name: str, dead: slice, silence: float
) -> None:
    """Inputs that calibration never saw: ggml alone finds the scale 0 for a group of them."""
    gaussian, silenced = gaussian[:8], importance.copy()
    silenced[dead] = silence
    back = restored(gaussian, name, silenced)
    equal = restored(gaussian, name, np.ones(1024, np.float32))
    assert np.isfinite(back).all()
    # Beside columns of the same group that count, they may have to give way, but are not cut off.
    most = max(3 * np.mean((equal - gaussian)[:, dead] ** 2), 0.05 * np.mean(gaussian[:, dead] ** 2))
    assert np.mean((back - gaussian)[:, dead] ** 2) < most


@pytest.mark.parametrize("name", SEARCHED_TYPES)
def test_single_columns_without_importance(gaussian: np.ndarray, importance: np.ndarray, name: str) -> None:
    silenced = np.where(np.arange(1024) % 3 == 0, 0, importance).astype(np.float32)
    assert np.isfinite(restored(gaussian[:8], name, silenced)).all()


def test_importance_of_another_width_is_refused(gaussian: np.ndarray) -> None:
    with pytest.raises(ValueError, match="512"):
        quantize_rows(Rows(gaussian), "Q4_K", np.ones(512, np.float32))


@pytest.mark.parametrize(("name", "factor"), [("F16", 1e6), ("Q4_K", 1e9), ("Q8_0", 1e9)])
def test_weights_beyond_half_precision_are_refused(gaussian: np.ndarray, name: str, factor: float) -> None:
    with pytest.raises(NotRepresentable):
        quantize_rows(Rows(gaussian * np.float32(factor)), name)


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q8_0", "IQ3_S"])
def test_fp8_beyond_half_precision_is_refused(name: str) -> None:
    codes = np.full((2, 256), 0x7E, np.uint8)  # 448
    assert quantize_rows(Rows(codes=codes, scale=np.full((1, 2), 0.1, np.float32)), name).any()
    with pytest.raises(NotRepresentable, match="65504"):
        quantize_rows(Rows(codes=codes, scale=np.array([[0.1, 150]], np.float32)), name)


@pytest.mark.parametrize("name", sorted(WRITABLE_TYPES))
@pytest.mark.parametrize("kquants", [OWN, GGML])
def test_fp8_gives_the_bytes_of_its_float32(importance: np.ndarray, name: str, kquants: str) -> None:
    random = np.random.default_rng(9)
    codes = torch.from_numpy(random.standard_normal((200, 512), np.float32) * 60).to(torch.float8_e4m3fn)
    scale = np.exp(random.standard_normal((3, 4))).astype(np.float32) * 1e-3
    # Rows from the middle of a block of scales on, over its end.
    rows = Rows(codes=codes.view(torch.uint8).numpy(), scale=scale, first_row=70)
    by_row = torch.from_numpy(scale).repeat_interleave(128, 0)[70:270].repeat_interleave(128, 1)
    wide = (codes.float() * by_row).numpy()
    columns = importance[:512]
    np.testing.assert_array_equal(
        quantize_rows(rows, name, columns, kquants), quantize_rows(Rows(wide), name, columns, kquants)
    )


@pytest.mark.parametrize("name", sorted(WRITABLE_TYPES - {"F32", "F16", "BF16"}))
def test_ggmls_search_is_ggmls(gaussian: np.ndarray, importance: np.ndarray, name: str) -> None:
    weighted = None if name in UNWEIGHTED_TYPES else importance
    np.testing.assert_array_equal(
        quantize_rows(Rows(gaussian), name, importance, GGML), ggml.quantize(gaussian, name, weighted)
    )


@pytest.mark.parametrize("name", OWN_TYPES)
@pytest.mark.parametrize("rest", [1e-5, 1e-10, 1e-30])
def test_one_important_column_does_not_cost_its_neighbours(gaussian: np.ndarray, name: str, rest: float) -> None:
    columns = np.ones(gaussian.shape[1], np.float32)
    columns[32:64] = rest
    columns[40] = 1
    others = np.setdiff1d(np.arange(32, 64), [40])
    error = (restored(gaussian, name, columns) - gaussian)[:, others]
    # 31 columns that hardly count keep what two bits keep of weights that count alike, and the best types much more.
    assert np.square(error).sum() < 0.2 * np.square(gaussian[:, others]).sum()


@pytest.mark.parametrize("name", OWN_TYPES)
@pytest.mark.parametrize("scale", [2.0**-50, 2.0**127])
def test_importance_has_no_unit(gaussian: np.ndarray, name: str, scale: float) -> None:
    columns = np.full(gaussian.shape[1], scale, np.float32)
    alike = np.ones_like(columns)
    assert np.array_equal(restored(gaussian, name, columns), restored(gaussian, name, alike))

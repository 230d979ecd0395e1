"""The seam to the quantizers, against gguf-py's dequantizers and torch's casts."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from quantkit.quantize.rows import NotRepresentable, quantize_rows
from quantkit.recipe.mixes import WRITABLE_TYPES

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


@pytest.mark.parametrize("name", sorted(RELATIVE_RMSE))
def test_error_is_that_of_the_type(gaussian: np.ndarray, name: str) -> None:
    back = gguf.quants.dequantize(quantize_rows(gaussian, name), gguf.GGMLQuantizationType[name])
    rmse = float(np.sqrt(np.mean((back - gaussian) ** 2)) / gaussian.std())
    assert rmse == pytest.approx(RELATIVE_RMSE[name], rel=0.03)


@pytest.mark.parametrize(("name", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16), ("F32", torch.float32)])
def test_casts_equal_torch(gaussian: np.ndarray, name: str, dtype: torch.dtype) -> None:
    expected = torch.from_numpy(gaussian).to(dtype).view(torch.uint8).numpy()
    np.testing.assert_array_equal(quantize_rows(gaussian, name), expected)


@pytest.mark.parametrize("name", sorted(WRITABLE_TYPES))
def test_rows_do_not_depend_on_their_neighbours(gaussian: np.ndarray, name: str) -> None:
    few = gaussian[:6]
    whole = quantize_rows(few, name)
    pieces = np.concatenate([quantize_rows(few[:1], name), quantize_rows(few[1:4], name), quantize_rows(few[4:], name)])
    np.testing.assert_array_equal(whole, pieces)


@pytest.mark.parametrize("name", sorted(WRITABLE_TYPES))
def test_zero_rows_stay_zero(name: str) -> None:
    packed = quantize_rows(np.zeros((2, 512), np.float32), name)
    assert not gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name]).any()


@pytest.mark.parametrize(("name", "factor"), [("F16", 1e6), ("Q4_K", 1e9), ("Q8_0", 1e9)])
def test_weights_beyond_half_precision_are_refused(gaussian: np.ndarray, name: str, factor: float) -> None:
    with pytest.raises(NotRepresentable):
        quantize_rows(gaussian * np.float32(factor), name)

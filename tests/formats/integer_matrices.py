"""Quantized matrices for the tests of the packed formats, and what other programs read out of packed ones."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from quantkit.formats.packed import PackedFormat
from quantkit.quantize.integers import WHOLE_ROW, IntegerGrid, Quantized

ROOT = Path(__file__).resolve().parents[2]
LLAMA_CPP = Path(os.environ.get("QUANTKIT_LLAMA_CPP", ROOT / ".cache" / "llama.cpp")) / "src"

GROUP_SIZES = (32, 64, 128, WHOLE_ROW)
# Rows and columns differ, so that a swap shows; neither is a power of two.
ROWS, COLUMNS = 40, 384

TORCH = {"I32": torch.int32, "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16}


def random_matrix(grid: IntegerGrid, rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> Quantized:
    """Random codes, scales and (where the grid has them) zeros."""
    random = np.random.default_rng(seed)
    groups = (rows, grid.groups(columns))
    scales = np.exp2(random.integers(-13, 4, groups)) * (1 + random.integers(0, 128, groups) / 128)
    zeros = np.full(groups, grid.middle) if grid.symmetric else random.integers(0, grid.levels, groups)
    codes = random.integers(0, grid.levels, (rows, columns))
    return Quantized(codes.astype(np.uint8), scales.astype(np.float32), zeros.astype(np.uint8))


def single_codes(grid: IntegerGrid) -> Quantized:
    """Row n has its one highest code in column n: every position of a word is the only one set, in some word."""
    codes = np.eye(64, dtype=np.uint8) * np.uint8(grid.levels - 1)
    ones = np.ones((64, grid.groups(64)), np.float32)
    return Quantized(codes, ones, np.full(ones.shape, grid.middle, np.uint8))


def assert_same(left: Quantized, right: Quantized) -> None:
    for field in ("codes", "scales", "zeros"):
        ours, theirs = getattr(left, field), getattr(right, field)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def packed_tensors(module: PackedFormat, prefix: str, quantized: Quantized, grid: IntegerGrid) -> dict[str, Any]:
    """What `pack` gives as torch tensors by full name, through bytes as in a file, so that dtype and shape count."""
    arrays = module.pack(quantized, grid)
    specs = module.tensors(prefix, *quantized.codes.shape, grid)
    assert [spec.name for spec in specs] == [f"{prefix}.{suffix}" for suffix in arrays]
    tensors = {}
    for spec, array in zip(specs, arrays.values(), strict=True):
        raw = bytearray(array.tobytes())
        assert len(raw) == spec.nbytes
        tensors[spec.name] = torch.frombuffer(raw, dtype=TORCH[spec.dtype]).reshape(spec.shape)
    return tensors


def decompressed(prefix: str, tensors: dict[str, Any], bits: int, group_size: int, symmetric: bool) -> Any:
    """float32 [N, K] as the compressed-tensors package dequantizes pack-quantized tensors."""
    strategy = {"strategy": "channel"} if group_size == WHOLE_ROW else {"strategy": "group", "group_size": group_size}
    scheme = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **strategy)
    )
    state = {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()}
    state["weight_scale"] = state["weight_scale"].float()  # else the products would be rounded to bfloat16
    return PackedQuantizationCompressor.decompress(state, scheme)["weight"].numpy()


def read_by_llama_cpp(
    config: dict[str, Any], tensors: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> dict[str, np.ndarray]:
    """Weights as llama.cpp's converter dequantizes a checkpoint with this quantization_config."""
    monkeypatch.syspath_prepend(LLAMA_CPP)
    from conversion.base import ModelBase

    model = SimpleNamespace(
        hparams={"quantization_config": config},
        model_tensors={name: (lambda tensor=tensor: tensor) for name, tensor in tensors.items()},
        lazy=False,
        _is_nvfp4=False,
    )
    ModelBase.dequant_model(model)
    return {name: tensor().numpy() for name, tensor in model.model_tensors.items()}

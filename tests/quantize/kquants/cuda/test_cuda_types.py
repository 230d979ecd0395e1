"""Blocks made by the kernels for CUDA are those that the CPU makes, but for a few near ties.

Where there is no card Triton's interpreter runs the kernels: it rounds as a card does, since they are compiled without
any fusing that they do not ask for. Time goes with the number of operations, not of weights.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from quantkit.checkpoint.index import open_checkpoint
from quantkit.checkpoint.reader import Reader
from quantkit.formats.gguf.types import block_size
from quantkit.quantize.kquants import quantize as cpu
from quantkit.quantize.kquants.cuda.quantize import TYPES, quantize
from quantkit.quantize.kquants.cuda.turned import turn, turn_fp8
from quantkit.quantize.kquants.rows import Rows

# What the interpreter says where a card says nothing: both sides of a choice are computed.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")
# Blocks whose bytes may differ, and what that may change of the error.
DIFFERENT, ERROR = 1e-3, 1e-4
COLUMNS = 1024


def test_all_of_the_cpus_types_have_kernels() -> None:
    assert TYPES == cpu.TYPES


def importance_of(columns: int) -> np.ndarray:
    """Mean squares as inputs have them, of some silent columns too."""
    random = np.random.default_rng(8)
    importance = np.exp(2 * random.standard_normal(columns)).astype(np.float32)
    importance[random.integers(0, columns, columns // 16)] = 0
    return importance


def made_up(rows: int) -> np.ndarray:
    """Gaussian rows, heavy-tailed ones, and some with outliers."""
    random = np.random.default_rng(7)
    weights = random.standard_normal((rows, COLUMNS)) * 0.02
    weights[rows // 2 :] = random.standard_t(3, (rows - rows // 2, COLUMNS)) * 0.01
    weights[:8, ::97] *= 50
    return weights.astype(np.float32)


def odd_rows() -> np.ndarray:
    """What a search may stumble over."""
    random = np.random.default_rng(9)
    rows = random.standard_normal((16, COLUMNS))
    rows[0] = 0
    rows[1] = 0.25
    rows[2] = -0.25
    rows[3] = 0
    rows[3, 300] = 1000
    rows[4] = -np.abs(rows[4])
    rows[5] = np.abs(rows[5])
    rows[6] *= 1e-6
    rows[7] *= 1e-8
    rows[8] *= 1e-30
    rows[9] *= 15000
    rows[10, :512] = 0
    rows[11, 1::2] = 0
    rows[12] = np.sign(rows[12])
    rows[13] = np.rint(rows[13] * 3)
    return np.clip(rows, -65504, 65504).astype(np.float32)


def compare(card: torch.device, rows: Rows, name: str, importance: np.ndarray | None, plain: int) -> None:
    """Quantize on both; compare the bytes by block, and the squared errors of the first `plain` rows."""
    expected = cpu.quantize(rows, name, importance)
    if rows.codes is not None and rows.scale is not None:
        codes, scale = torch.from_numpy(rows.codes).to(card), torch.from_numpy(rows.scale).to(card)
        turned = turn_fp8(codes, scale, rows.block, rows.first_row)
    else:
        turned = turn(torch.from_numpy(rows.float32()).to(card))
    weighted = None if importance is None else torch.from_numpy(importance).to(card)
    packed, sound = quantize(turned, name, weighted)
    assert sound
    found = packed.cpu().numpy()
    blocks = (-1, block_size(name)[1])
    assert np.any(expected.reshape(blocks) != found.reshape(blocks), axis=1).mean() <= DIFFERENT
    cost = 1 if importance is None else importance.astype(np.float64)
    values = (gguf.quants.dequantize(each[:plain], gguf.GGMLQuantizationType[name]) for each in (expected, found))
    errors = [float((np.square(each - rows.float32()[:plain]) * cost).sum()) for each in values]
    assert errors[1] == pytest.approx(errors[0], rel=ERROR)


@pytest.mark.parametrize(
    ("name", "weighted"), [*((name, True) for name in sorted(TYPES)), ("Q4_K", False), ("Q3_K", False), ("Q4_0", False)]
)
def test_blocks_equal_the_cpus(name: str, weighted: bool, card: torch.device) -> None:
    rows = Rows(np.concatenate([made_up(110), odd_rows()]))
    compare(card, rows, name, importance_of(COLUMNS) if weighted else None, 110)


def test_trained_weights_in_fp8_equal_the_cpus(tiny_m2: Path, card: torch.device) -> None:
    checkpoint = open_checkpoint(tiny_m2)
    source = "model.layers.1.block_sparse_moe.experts.3.w1.weight"
    with Reader(checkpoint, (128, 128)) as reader:
        codes, scale = reader.read_fp8(source, f"{source}_scale_inv", (100, 256))
        rows = Rows(codes=codes, scale=scale, first_row=100)
        compare(card, rows, "Q6_K", importance_of(codes.shape[1]), len(codes))


@pytest.mark.full
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", sorted(TYPES))
def test_many_blocks_equal_the_cpus(name: str, weighted: bool, card: torch.device) -> None:
    rows = Rows(np.concatenate([made_up(3072), odd_rows()]))
    compare(card, rows, name, importance_of(COLUMNS) if weighted else None, 3072)

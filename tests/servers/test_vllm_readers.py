"""vLLM's own readers find in our packed tensors the codes, zeros and scales that were chosen; no rounding in between.

They run in vLLM's environment, all cases in one process. Servers, which need whole models, are in test_vllm.py.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from vllm_server import vllm_environment, vllm_python

from quantkit.formats.packed import FORMATS
from quantkit.quantize.integers import WHOLE_ROW, IntegerGrid, Quantized

ROWS, COLUMNS = 40, 384  # different, and no powers of two, so that a swap shows
TORCH = {"I32": torch.int32, "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16}
CASES = {
    "awq": ("awq", IntegerGrid(4, 32, False)),
    "awq-symmetric": ("awq", IntegerGrid(4, 128, True)),
    "gptq": ("gptq", IntegerGrid(4, 32, True)),
    "gptq-rows": ("gptq", IntegerGrid(4, WHOLE_ROW, True)),
    "gptq-8-bit": ("gptq", IntegerGrid(8, 64, True)),
    "compressed": ("compressed-tensors", IntegerGrid(4, 128, True)),
    "compressed-rows": ("compressed-tensors", IntegerGrid(4, WHOLE_ROW, True)),
    "compressed-8-bit": ("compressed-tensors", IntegerGrid(8, 32, True)),
}


def chosen(case: str) -> Quantized:
    """Random codes, scales exact in bfloat16 and float16, and zeros."""
    _, grid = CASES[case]
    random = np.random.default_rng(len(case))
    groups = (ROWS, grid.groups(COLUMNS))
    scales = np.exp2(random.integers(-13, 4, groups)) * (1 + random.integers(0, 128, groups) / 128)
    zeros = np.full(groups, grid.middle) if grid.symmetric else random.integers(0, grid.levels, groups)
    codes = random.integers(0, grid.levels, (ROWS, COLUMNS))
    return Quantized(codes.astype(np.uint8), scales.astype(np.float32), zeros.astype(np.uint8))


def stored(case: str) -> dict[str, Tensor]:
    """The tensors of `case` as a file has them, under the names that vllm_readers.py splits."""
    name, grid = CASES[case]
    prefix = f"{case}/{name}-{grid.bits}/"
    specs = FORMATS[name].tensors("x", ROWS, COLUMNS, grid)
    arrays = FORMATS[name].pack(chosen(case), grid)
    return {
        prefix + suffix: torch.frombuffer(bytearray(array.tobytes()), dtype=TORCH[spec.dtype]).reshape(spec.shape)
        for spec, (suffix, array) in zip(specs, arrays.items(), strict=True)
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("readers")
    save_file({name: tensor for case in CASES for name, tensor in stored(case).items()}, folder / "packed.safetensors")
    program = Path(__file__).with_name("vllm_readers.py")
    command = [vllm_python(), program, folder / "packed.safetensors", folder / "found.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, env=vllm_environment(), cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "found.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_codes_and_zeros(case: str, found: dict[str, Tensor]) -> None:
    quantized = chosen(case)
    units = Quantized(quantized.codes, np.ones_like(quantized.scales), quantized.zeros)
    np.testing.assert_array_equal(found[f"{case}/units"].numpy(), units.dequantized())


@pytest.mark.parametrize("case", CASES)
def test_values(case: str, found: dict[str, Tensor]) -> None:
    ours = torch.from_numpy(chosen(case).dequantized()).to(torch.bfloat16).float()
    assert torch.equal(found[f"{case}/values"], ours)


def test_plugin_hooks_in_once(found: dict[str, Tensor]) -> None:
    counts = {name: int(count) for name, count in found.items() if name.startswith("registered/")}
    assert counts == {"registered/mixed": 1, "registered/fp8": 1, "registered/fp8-weights": 1}

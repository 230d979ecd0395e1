"""Peak memory of `quantkit gguf --compensate`: the same for 8 layers and more; a real layer stays within 6 GiB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness import MakeCheckpoint
from peak_memory import run_measured
from safetensors.numpy import save_file

pytestmark = pytest.mark.alone

GIB = 2**30
ROOT = Path(__file__).resolve().parents[3]


def peak(source: Path, out: Path, documents: int, length: int) -> int:
    """Peak resident bytes of a run to Q4_K_M as a process of its own, as the system counted them."""
    tokens = out.with_suffix(".tokens")
    save_file({"ids": np.random.default_rng(0).integers(0, 500, (documents, length)).astype(np.int32)}, tokens)
    options = ["gguf", "q4_k_m", source, "-o", out, "--compensate", "--tokens", tokens, "--threads", "2", "--json"]
    found, stdout = run_measured([sys.executable, "-m", "quantkit", *map(str, options)])
    assert json.loads(stdout)["peak_rss_bytes"] == pytest.approx(found, rel=0.02)
    return found


@pytest.mark.parametrize("many", [24, pytest.param(62, marks=pytest.mark.full)])
def test_peak_memory_is_the_same_for_8_and_more_layers(
    many: int, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    found = {
        layers: peak(make_checkpoint(tmp_path / f"{layers}", layers=layers), tmp_path / f"q{layers}.gguf", 8, 64)
        for layers in (8, many)
    }
    print(f"peak RSS: 8 layers {found[8] / 1e6:.1f} MB, {many} layers {found[many] / 1e6:.1f} MB")
    assert found[many] <= 1.10 * found[8]


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_peak_memory_of_a_real_layer(tmp_path: Path) -> None:
    source = tmp_path / "real"
    command = [sys.executable, ROOT / "scripts" / "make_synthetic.py", source, "--real-dims", "--layers", "1"]
    subprocess.run(list(map(str, command)), check=True)
    found = peak(source, tmp_path / "real.gguf", 64, 512)
    print(f"peak RSS of one real layer in Q4_K_M: {found / GIB:.3f} GiB")
    assert found <= 6 * GIB

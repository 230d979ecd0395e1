"""Peak memory of an INT4 run does not grow with the model's layers, and a real layer stays within 6 GiB."""

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
ROOT = Path(__file__).resolve().parents[2]
SIZE = {"hidden": 128, "width": 128, "heads": 2, "shard_bytes": 1_000_000}


def tokens_file(path: Path, documents: int, length: int) -> Path:
    ids = np.random.default_rng(0).integers(0, 500, (documents, length)).astype(np.int32)
    save_file({"ids": ids}, path)
    return path


def peak(method: str, source: Path, out: Path, *options: str | Path) -> int:
    """Peak resident bytes of a run as a process of its own, as the system counted them."""
    command = [sys.executable, "-m", "quantkit", method, source, "-o", out, "--json", *options]
    found, stdout = run_measured(list(map(str, command)))
    assert json.loads(stdout)["peak_rss_bytes"] == pytest.approx(found, rel=0.02)
    return found


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_peak_memory_is_the_same_for_8_and_62_layers(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, method: str
) -> None:
    text = () if method == "rtn" else ("--tokens", tokens_file(tmp_path / "t", 16, 64), "--min-tokens-per-expert", "32")
    found = {
        layers: peak(
            method, make_checkpoint(tmp_path / f"{layers}", layers=layers, **SIZE), tmp_path / f"q{layers}", *text
        )
        for layers in (8, 62)
    }
    print(f"peak RSS of {method}: 8 layers {found[8] / 1e6:.1f} MB, 62 layers {found[62] / 1e6:.1f} MB")
    assert found[62] <= 1.10 * found[8]


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_peak_memory_of_a_real_layer(tmp_path: Path) -> None:
    source = tmp_path / "real"
    command = [sys.executable, ROOT / "scripts" / "make_synthetic.py", source, "--real-dims", "--layers", "1"]
    subprocess.run(list(map(str, command)), check=True)
    tokens = tokens_file(tmp_path / "t", 64, 512)
    limits = {"rtn": 2 * GIB, "gptq": 6 * GIB}
    found = {
        "rtn": peak("rtn", source, tmp_path / "rtn"),
        "gptq": peak("gptq", source, tmp_path / "gptq", "--tokens", tokens),
    }
    for method, most in limits.items():
        print(f"peak RSS of {method} of one real layer: {found[method] / GIB:.3f} GiB")
        assert found[method] <= most

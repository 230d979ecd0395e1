"""Peak memory of a calibration does not grow with the model's layers, and stays within the budget that was given."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from peak_memory import run_measured
from safetensors.numpy import save_file

pytestmark = pytest.mark.alone

GIB = 2**30
ROOT = Path(__file__).resolve().parents[2]

# Wide and cheap: the hidden states of a token are 14 kB, and each goes to one of two narrow experts.
WIDE = {"layers": 1, "hidden": 1792, "width": 128, "experts": 2, "used": 1, "heads": 2, "head_dim": 32}
WIDE_DOCUMENTS, WIDE_LENGTH = 1400, 64
BUDGET = 1_300_000_000


@dataclass(frozen=True)
class Run:
    """What a run as a process of its own left: its peak memory as the system counted it, and its output."""

    peak: int
    imatrix: bytes
    report: bytes


def tokens_file(path: Path, documents: int, length: int, vocab: int) -> Path:
    ids = np.random.default_rng(0).integers(0, vocab, (documents, length)).astype(np.int32)
    save_file({"ids": ids}, path)
    return path


def run(source: Path, tokens: Path, folder: Path, *options: str) -> Run:
    folder.mkdir()
    out = folder / "i.gguf"
    command = [sys.executable, "-m", "quantkit", "imatrix", source, "-o", out, "--tokens", tokens, "--json", *options]
    peak, stdout = run_measured(list(map(str, command)))
    assert json.loads(stdout)["peak_rss_bytes"] == pytest.approx(peak, rel=0.02)
    return Run(peak, out.read_bytes(), out.with_name("i.coverage.json").read_bytes())


def test_peak_memory_is_the_same_for_8_and_62_layers(
    make_checkpoint: Callable[..., Path], layers62: Path, tmp_path: Path
) -> None:
    tokens = tokens_file(tmp_path / "t", 16, 64, 512)
    config = json.loads((layers62 / "config.json").read_text())
    assert config["num_hidden_layers"] == 62
    few = make_checkpoint(tmp_path / "few", layers=8, experts=10, heads=12, kv_heads=2)
    few_layers, many = run(few, tokens, tmp_path / "8").peak, run(layers62, tokens, tmp_path / "62").peak
    print(f"peak RSS: 8 layers {few_layers / 1e6:.1f} MB, 62 layers {many / 1e6:.1f} MB")
    assert many <= 1.10 * few_layers


def test_states_over_the_budget_go_to_disk(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "wide", **WIDE)
    tokens = tokens_file(tmp_path / "t", WIDE_DOCUMENTS, WIDE_LENGTH, 512)
    options = ("--precision", "float32", "--min-tokens-per-expert", "0")
    roomy = run(source, tokens, tmp_path / "roomy", *options, "--memory", "16G")
    tight = run(source, tokens, tmp_path / "tight", *options, "--memory", str(BUDGET))
    print(f"peak RSS: 16 GB budget {roomy.peak / 1e6:.1f} MB, {BUDGET / 1e6:.0f} MB budget {tight.peak / 1e6:.1f} MB")
    states = WIDE_DOCUMENTS * WIDE_LENGTH * WIDE["hidden"] * 8
    assert roomy.peak > states
    assert states + 100e6 > BUDGET
    assert tight.peak <= BUDGET
    assert tight.imatrix == roomy.imatrix
    assert tight.report == roomy.report


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_peak_memory_of_a_real_layer(tmp_path: Path) -> None:
    source = tmp_path / "real"
    command = [sys.executable, ROOT / "scripts" / "make_synthetic.py", source, "--real-dims", "--layers", "1"]
    subprocess.run(list(map(str, command)), check=True)
    tokens = tokens_file(tmp_path / "t", 64, 512, 512)
    peak = run(source, tokens, tmp_path / "out").peak
    print(f"peak RSS of one real layer with 64 x 512 tokens: {peak / GIB:.3f} GiB")
    assert peak <= 4 * GIB

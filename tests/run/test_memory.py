"""Peak memory does not grow with the model, and no file but the output grows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from peak_memory import run_measured

from quantkit.errors import BadInput
from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf.convert import write_gguf

pytestmark = pytest.mark.alone

GIB = 2**30
ROOT = Path(__file__).resolve().parents[2]


def peak_rss(source: Path, out: Path, mix: str) -> int:
    """Peak memory of the command line, a process of its own, as the system counted it."""
    options = ["gguf", mix, str(source), "-o", str(out), "--threads", "2", "--json"]
    peak, stdout = run_measured([sys.executable, "-m", "quantkit", *options])
    assert json.loads(stdout)["peak_rss_bytes"] == pytest.approx(peak, rel=0.05)
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name]
    out.unlink()
    return peak


def test_peak_memory_is_the_same_for_2_and_62_layers(small_checkpoint: Path, layers62: Path, tmp_path: Path) -> None:
    few = peak_rss(small_checkpoint, tmp_path / "m.gguf", "q8_0")
    many = peak_rss(layers62, tmp_path / "m.gguf", "q8_0")
    assert many <= 1.10 * few + 8e6  # 47,000 tensor records and items are a few MB
    assert many <= GIB


def real_layers(folder: Path, layers: int) -> Path:
    """Write `layers` layers of M2.7's real size, 3.7 GB each."""
    command = [sys.executable, str(ROOT / "scripts" / "make_synthetic.py"), str(folder), "--real-dims"]
    subprocess.run([*command, "--layers", str(layers)], check=True)
    return folder


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_peak_memory_of_real_layers(tmp_path: Path) -> None:
    out = tmp_path / "out" / "m.gguf"
    out.parent.mkdir()
    # Q8_0, because it is ten times as fast as Q4_K and holds more per item; bench_gguf.py prints the peak of Q4_K_M.
    one = peak_rss(real_layers(tmp_path / "one", 1), out, "q8_0")
    three = peak_rss(real_layers(tmp_path / "three", 3), out, "q8_0")
    print(f"peak RSS: one layer {one / GIB:.3f} GiB, three layers {three / GIB:.3f} GiB")
    assert one <= 2 * GIB
    assert abs(three - one) <= 0.10 * one


def test_a_budget_below_one_item_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--memory"):
        write_gguf(small_checkpoint, tmp_path / "m.gguf", recipe_from_options("q8_0"), memory=10_000_000)
    assert not (tmp_path / "m.gguf").exists()

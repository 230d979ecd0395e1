"""With llama.cpp's programs at hand the divergence is what llama-perplexity prints on the original's exact rows."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Cli

Report = dict[str, Any]
ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = Path(os.environ.get("QUANTKIT_LLAMA_CPP", ROOT / ".cache" / "llama.cpp")) / "build" / "bin"
# --no-repack: kernels for AMX crash where the kernel of the machine does not allow them.
PLAIN = ("--threads", "1", "--no-repack")


@pytest.mark.full
def test_report_has_the_figures_that_the_program_prints(
    tiny_m2: Path, cli: Cli, verify: Callable[..., tuple[int, Report]], tmp_path: Path
) -> None:
    model, text = tmp_path / "q4_k_m.gguf", tiny_m2 / "heldout" / "text_code.txt"
    assert cli("gguf", "q4_k_m", tiny_m2, "-o", model).code == 0
    arguments = ("--requests", "none", "--text", text)
    _, report = verify(
        model, "--reference", tiny_m2, "--programs", PROGRAMS, "--server-args", " ".join(PLAIN), *arguments
    )
    metrics, folder = report["metrics"], tmp_path / "report"
    base = tmp_path / "base.logits"
    capture = ("verify", "capture", tiny_m2, "-o", tmp_path / "streamed.capture", "--engine", "streamed")
    assert cli(*capture, *arguments, "--logits-base", base).code == 0
    assert base.read_bytes() == (folder / "reference.logits").read_bytes()
    command = [PROGRAMS / "llama-perplexity", "-m", model, "-c", "512", "--kl-divergence-base", base, "--kl-divergence"]
    printed = subprocess.run([*command, *PLAIN], check=True, capture_output=True, text=True).stdout
    found = {name: float(value) for name, value in re.findall(r"^(.*?)\s*:\s+(-?[\d.]+)", printed, re.MULTILINE)}
    assert metrics["kld"]["mean"] == pytest.approx(found["Mean    KLD"], abs=1e-6)
    assert metrics["kld"]["median"] == pytest.approx(found["Median  KLD"], abs=1e-6)
    assert metrics["kld"]["max"] == pytest.approx(found["Maximum KLD"], abs=1e-6)
    assert metrics["ppl"]["quantized"] == pytest.approx(found["Mean PPL(Q)"], abs=1e-5)
    assert metrics["ppl"]["reference"] == pytest.approx(found["Mean PPL(base)"], abs=1e-5)
    assert metrics["same_top1"] == pytest.approx(found["Same top p"] / 100, abs=1e-5)
    _, streamed = verify(model, "--reference", tmp_path / "streamed.capture", "--engine", "streamed", "--force")
    # Of every passage the program scores the second half, the streamed pass all of it.
    assert streamed["metrics"]["kld"]["mean"] == pytest.approx(metrics["kld"]["mean"], rel=0.15)

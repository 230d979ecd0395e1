"""INT4 against llm-compressor on the same calibration tokens: KL divergence to the FP8 model on held-out text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from reference_programs import ROOT, run_program

pytestmark = [pytest.mark.full, pytest.mark.timeout(7200)]

DEMANDS = {
    ("quantkit gptq g128 symmetric", "llm-compressor GPTQ g128 symmetric"): 0.65,
    ("quantkit gptq g32 symmetric", "llm-compressor GPTQ g32 symmetric"): 0.65,
    ("quantkit awq g128", "rounding g128"): 0.8,
    ("quantkit awq g128", "llm-compressor AWQ g128"): 0.9,
    ("best of quantkit g128", "best of llm-compressor g128"): 0.6,
    ("best of quantkit g32", "best of llm-compressor g32"): 0.6,
    # With zero points, in files that vLLM takes on GPUs only.
    ("best of quantkit g128", "llm-compressor GPTQ g128"): 0.75,
    ("best of quantkit g32", "llm-compressor GPTQ g32"): 0.75,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path: Path = tmp_path_factory.mktemp("int4") / "quality.json"
    run_program(sys.executable, ROOT / "scripts" / "bench_int4.py", "--part", "quality", "--json", path)
    return json.loads(path.read_text())


def test_enough_was_scored(found: dict[str, Any]) -> None:
    assert found["positions"] >= 4000


@pytest.mark.parametrize(("ours", "theirs"), DEMANDS)
def test_divergence_is_lower(found: dict[str, Any], ours: str, theirs: str) -> None:
    ratio = next(row["ratio"] for row in found["ratios"] if (row["ours"], row["against"]) == (ours, theirs))
    print(f"\n{ours} over {theirs}: {ratio:.3f}")
    assert ratio <= DEMANDS[ours, theirs]

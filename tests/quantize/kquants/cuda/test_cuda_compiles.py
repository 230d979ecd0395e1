"""Triton's compiler and NVIDIA's assembler take every kernel; neither needs a card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from quantkit.quantize.kquants.cuda.quantize import TYPES

PROGRAM = Path(__file__).with_name("compile_kernels.py")
# With more, fewer than four programs of four warps have room beside each other.
REGISTERS = 128


def test_kernels_compile_for_a_card_and_fit_into_its_registers(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    ended = subprocess.run(
        [sys.executable, PROGRAM], input=" ".join(TYPES), env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    needs = json.loads(ended.stdout)
    assert len(needs) > len(TYPES)
    for kernel, need in needs.items():
        assert need["stack"] == need["local"] == 0, kernel
        assert need["reg"] <= REGISTERS, kernel

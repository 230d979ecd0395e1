"""Experts quantized in groups, as on a GPU: the same files as one by one, but for ties."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import MakeCheckpoint
from int4_runs import Case
from integer_reference import dequantized

from quantkit.forward.weights import Weights
from quantkit.run.int4 import calibrated_pass, experts_together
from quantkit.run.int4.experts_together import GroupQuantizer
from quantkit.run.int4.folder import PackedFolder
from quantkit.run.int4.settings import Int4Settings

SIZE = {"layers": 2, "hidden": 256, "width": 128, "experts": 8, "used": 2}
RUNS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "gptq": ("gptq", False, {}),
    "gptq of a bf16 source, 8 bits": ("gptq", True, {"bits": 8}),
    "awq": ("awq", False, {}),
    "awq then gptq": ("awq", False, {"then_gptq": True, "symmetric": True}),
}


@pytest.fixture
def in_groups(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def use(together: int) -> None:
        def quantizer(weights: Weights, folder: PackedFolder, settings: Int4Settings, layer: int) -> GroupQuantizer:
            return GroupQuantizer(weights, folder, settings, layer, together)

        monkeypatch.setattr(calibrated_pass, "layer_quantizer", quantizer)

    return use


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    found = dequantized(out, json.loads((out / "config.json").read_text())["quantization_config"])
    return {name: values for name, values in found.items() if ".experts." in name}


@pytest.mark.parametrize("run", RUNS)
def test_files_are_those_of_one_by_one(
    run: str, make_checkpoint: MakeCheckpoint, tmp_path: Path, in_groups: Callable[[int], None]
) -> None:
    method, bf16, options = RUNS[run]
    source = make_checkpoint(tmp_path / "checkpoint", bf16=bf16, **SIZE)
    results = []
    for name, together in (("alone", 0), ("groups", 3)):  # the last group has two
        if together:
            in_groups(together)
        case = Case(source, tmp_path / name, method)
        results.append(case.run(**options))
    alone, groups = (weights_of(tmp_path / name) for name in ("alone", "groups"))
    assert alone.keys() == groups.keys()
    # Of the first layer: what enters the second one differs a little, and tokens may take other ways through it.
    first = [name for name in alone if ".layers.0." in name]
    same = {name: float((alone[name] == groups[name]).float().mean()) for name in first}
    assert np.mean([part for name, part in same.items() if not name.endswith("w2.weight")]) >= 0.999
    # A tie in one expert's w1 or w3 changes what enters its w2.
    assert np.median([part for name, part in same.items() if name.endswith("w2.weight")]) >= 0.999
    assert results[1].relative_error == pytest.approx(results[0].relative_error, rel=1e-2)
    assert results[1].fallbacks == results[0].fallbacks


def test_processors_take_one_expert_at_a_time(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    quantizers = []
    original = experts_together.LayerQuantizer
    case = Case(make_checkpoint(tmp_path / "checkpoint", **SIZE), tmp_path / "out", "gptq")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experts_together, "LayerQuantizer", lambda *given: quantizers.append(given) or original(*given))
        case.run()
    assert len(quantizers) == SIZE["layers"]

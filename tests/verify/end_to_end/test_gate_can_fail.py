"""Damaged models fail, each by the figure that is meant to show its damage; without a server, in the streamed pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Cli, Damage
from safetensors.torch import load_file
from torch import Tensor
from verdicts import failed

Report = dict[str, Any]
LAYER = 2
MOE = f"model.layers.{LAYER}.block_sparse_moe."


def expert_zeroed(damage: Damage) -> None:
    _scale(damage, f"{MOE}experts.5.w2.weight_scale_inv", 0.0)


def router_at_4_bits(damage: Damage) -> None:
    def rounded(gate: Tensor) -> Tensor:
        scale = gate.float().abs().amax(1, keepdim=True) / 7
        return (torch.round(gate.float() / scale) * scale).to(gate.dtype)

    _change(damage, f"{MOE}gate.weight", rounded)


def w1_and_w3_swapped(damage: Damage) -> None:
    for expert in range(16):
        for part in ("weight", "weight_scale_inv"):
            first, third = (f"{MOE}experts.{expert}.{matrix}.{part}" for matrix in ("w1", "w3"))
            w1, w3 = _read(damage, first), _read(damage, third)
            damage.replace(first, w3)
            damage.replace(third, w1)


def correction_bias_dropped(damage: Damage) -> None:
    _change(damage, f"{MOE}e_score_correction_bias", torch.zeros_like)


def scales_too_large(damage: Damage) -> None:
    for expert in range(16):
        _scale(damage, f"{MOE}experts.{expert}.w2.weight_scale_inv", 1.05)


@pytest.fixture(scope="module")
def texts(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Code and prose, of which the fixture is less sure than of dialogues."""
    folder = tmp_path_factory.mktemp("code-and-prose")
    options = []
    for name in ("code", "docs"):
        (folder / f"{name}.txt").write_text((tiny_m2 / "heldout" / f"text_{name}.txt").read_text()[:3000])
        options += ["--text", str(folder / f"{name}.txt")]
    return options


# Damage, and the metrics that have to fail.
DAMAGES: dict[str, tuple[Callable[[Damage], None], set[str]]] = {
    "expert zeroed": (expert_zeroed, {"layers.expert_gain_min", "layers.expert_error_max"}),
    "router at 4 bits": (router_at_4_bits, {"layers.routing_min"}),
    "w1 and w3 swapped": (w1_and_w3_swapped, {"layers.expert_error_max", "layers.expert_gain_min"}),
    "correction bias dropped": (correction_bias_dropped, {"layers.routing_min"}),
    "scales x 1.05": (scales_too_large, {"layers.expert_gain_max"}),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_caught_by_its_figure(
    name: str, tiny_m2: Path, texts: list[str], verify: Callable[..., tuple[int, Report]], tmp_path: Path
) -> None:
    spoil, metrics = DAMAGES[name]
    damage = Damage(Path(shutil.copytree(tiny_m2, tmp_path / "damaged")))
    spoil(damage)
    code, report = verify(damage.folder, "--reference", tiny_m2, "--engine", "streamed", *texts)
    assert (code, report["verdict"]) == (3, "FAIL")
    assert metrics <= failed(report)


def test_two_bits_are_caught_by_the_divergence(
    tiny_m2: Path, texts: list[str], cli: Cli, verify: Callable[..., tuple[int, Report]], tmp_path: Path
) -> None:
    out = tmp_path / "q2_k.gguf"
    assert cli("gguf", "q2_k", tiny_m2, "-o", out).code == 0
    code, report = verify(out, "--reference", tiny_m2, "--engine", "streamed", *texts)
    assert (code, report["verdict"]) == (3, "FAIL")
    assert "kld.mean" in failed(report)


def test_the_model_itself_passes(
    tiny_m2: Path, texts: list[str], verify: Callable[..., tuple[int, Report]], tmp_path: Path
) -> None:
    code, report = verify(tiny_m2, "--reference", tiny_m2, "--engine", "streamed", *texts, "--gate", "strict")
    assert (code, report["verdict"]) == (0, "PASS")
    assert report["metrics"]["kld"]["max"] == 0


def _read(damage: Damage, name: str) -> Tensor:
    return load_file(damage.shard_of(name))[name]


def _change(damage: Damage, name: str, new: Callable[[Tensor], Tensor]) -> None:
    damage.replace(name, new(_read(damage, name)))


def _scale(damage: Damage, name: str, factor: float) -> None:
    _change(damage, name, lambda scale: scale * factor)

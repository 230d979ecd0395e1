"""What an INT4 checkpoint has to contain, from the source's headers and the layouts as their projects describe them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

# Rows and columns of every quantized matrix differ, so that a swap shows.
SIZE = {"layers": 2, "hidden": 256, "width": 384, "experts": 4, "used": 2, "heads": 6, "kv_heads": 1}
EXPERT_WEIGHTS = SIZE["layers"] * SIZE["experts"] * 3 * SIZE["hidden"] * SIZE["width"]

Table = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Wanted:
    """What the options of a run ask for."""

    format: str
    bits: int = 4
    group: int = 128
    attention: str = "bf16"
    kept: tuple[int, ...] = ()

    def table(self, source: Path) -> Table:
        """Dtype and shape of every tensor of the output by name."""
        found: Table = {}
        for name, (dtype, shape) in table(source).items():
            module = name.removesuffix(".weight")
            if name.endswith("_scale_inv"):
                if "self_attn" in name and self.attention == "fp8":
                    found[name.replace("_scale_inv", "_scale")] = ("F32", shape)
            elif self.packs(name):
                found |= {f"{module}.{part}": entry for part, entry in self._packed(*shape).items()}
            elif is_attention(name) and self.attention == "fp8":
                found[name] = ("F8_E4M3", shape)
            else:
                found[name] = ("BF16" if dtype == "F8_E4M3" else dtype, shape)
        return found

    def packs(self, name: str) -> bool:
        """Whether the source's tensor of this name ends as integers."""
        if ".experts." in name:
            return not any(f"layers.{layer}." in name for layer in self.kept)
        return is_attention(name) and self.attention == "int4"

    def _packed(self, rows: int, columns: int) -> Table:
        word = 32 // self.bits
        groups = 1 if self.group == -1 else columns // self.group
        if self.format == "awq":
            return {
                "qweight": ("I32", (columns, rows // word)),
                "qzeros": ("I32", (groups, rows // word)),
                "scales": ("F16", (groups, rows)),
            }
        if self.format == "gptq":
            return {
                "qweight": ("I32", (columns // word, rows)),
                "qzeros": ("I32", (groups, rows // word)),
                "scales": ("F16", (groups, rows)),
                "g_idx": ("I32", (columns,)),
            }
        return {
            "weight_packed": ("I32", (rows, columns // word)),
            "weight_scale": ("BF16", (rows, groups)),
            "weight_shape": ("I64", (2,)),
        }


def is_attention(name: str) -> bool:
    return name.endswith("_proj.weight")


def table(folder: Path) -> Table:
    """Dtype and shape of all tensors of a checkpoint folder, from the shards' headers."""
    found: Table = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                found[name] = (part.get_dtype(), tuple(part.get_shape()))
    return found


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder."""
    found: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def original(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of an FP8 or BF16 checkpoint in float32, without the tensors of block scales."""
    found = tensors(folder)
    wide = {name: tensor.float() for name, tensor in found.items() if not name.endswith("_scale_inv")}
    for name, scale in found.items():
        if name.endswith("_scale_inv"):
            weight = name.removesuffix("_scale_inv")
            rows, columns = wide[weight].shape
            spread = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
            wide[weight] = wide[weight] * spread
    return wide


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def distance(tensor: torch.Tensor, reference: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of the reference."""
    return float((tensor - reference).norm() / reference.norm())

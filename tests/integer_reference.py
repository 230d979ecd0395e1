"""transformers' MiniMax-M2 in float32, with weights from an AWQ, GPTQ or compressed-tensors checkpoint.

Nothing of quantkit reads here: safetensors reads the shards, the integers are taken out of their words as the formats'
own projects describe them, and transformers loads the float32 checkpoint that this makes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import MiniMaxM2ForCausalLM

AWQ_NIBBLES = [0, 4, 1, 5, 2, 6, 3, 7]  # nibble that holds value j of a word's eight, in AutoAWQ's GEMM layout

Parts = dict[str, Tensor]


def model_from_integers(folder: Path, work: Path) -> MiniMaxM2ForCausalLM:
    """Return the model with the dequantized weights of the checkpoint in `folder`; `work` is for a float32 copy."""
    return model_from_float32(float32_copy(folder, work))


def float32_copy(folder: Path, work: Path) -> Path:
    """Write the checkpoint in `folder` into `work`, not there yet, with its weights dequantized; return `work`."""
    config = json.loads((folder / "config.json").read_text())
    tensors = dequantized(folder, config.pop("quantization_config"))
    work.mkdir(parents=True)
    for key in ("auto_map", "dtype"):
        config.pop(key, None)
    (work / "config.json").write_text(json.dumps(config))
    save_file(tensors, work / "model.safetensors", metadata={"format": "pt"})
    return work


def model_from_float32(folder: Path) -> MiniMaxM2ForCausalLM:
    """Return the model of a checkpoint that float32_copy wrote."""
    model, problems = MiniMaxM2ForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(problems.values()), problems
    return model.eval()


def dequantized(folder: Path, quantization: dict[str, Any]) -> dict[str, Tensor]:
    """Return all tensors of the checkpoint in float32, quantized weights under `MODULE.weight`."""
    read: Callable[[Parts, int], Tensor] = {"awq": _awq, "gptq": _gptq, "compressed-tensors": _compressed}[
        quantization["quant_method"]
    ]
    modules: dict[str, Parts] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                module, _, part = name.rpartition(".")
                modules.setdefault(module, {})[part] = file.get_tensor(name)
    tensors: dict[str, Tensor] = {}
    for module, parts in modules.items():
        if parts.keys() & {"qweight", "weight_packed"}:
            parts = {"weight": read(parts, _bits(quantization))}  # noqa: PLW2901
        elif "weight_scale" in parts:
            parts = {"weight": _fp8(parts)}  # noqa: PLW2901
        tensors |= {f"{module}.{part}": tensor.float().contiguous() for part, tensor in parts.items()}
    return tensors


def _bits(quantization: dict[str, Any]) -> int:
    if "bits" in quantization:
        return int(quantization["bits"])
    (bits,) = {
        group["weights"]["num_bits"]
        for group in quantization["config_groups"].values()
        if group["weights"]["type"] == "int"
    }
    return int(bits)


def _values(words: Tensor, bits: int) -> Tensor:
    """Return the unsigned values [..., 32 / bits * W] of int32 `words` [..., W], lowest bits first."""
    shifts = torch.arange(0, 32, bits)
    return ((words.long()[..., None] >> shifts) & ((1 << bits) - 1)).flatten(-2)


def _awq(parts: Parts, bits: int) -> Tensor:
    assert bits == 4
    codes, zeros = (
        _values(parts[name], 4).unflatten(-1, (-1, 8))[..., AWQ_NIBBLES].flatten(-2) for name in ("qweight", "qzeros")
    )
    return _times(codes.T, zeros.T, parts["scales"].T)


def _gptq(parts: Parts, bits: int) -> Tensor:
    codes = _values(parts["qweight"].T, bits)
    zeros = _values(parts["qzeros"], bits) + 1  # version 1 of the layout
    groups = parts["g_idx"].long()
    return (codes - zeros[groups].T) * parts["scales"].float()[groups].T


def _compressed(parts: Parts, bits: int) -> Tensor:
    codes = _values(parts["weight_packed"], bits)
    assert list(codes.shape) == parts["weight_shape"].tolist()
    scales = parts["weight_scale"]
    return _times(codes, torch.full(scales.shape, 1 << (bits - 1)), scales)


def _fp8(parts: Parts) -> Tensor:
    rows, columns = parts["weight"].shape
    spread = parts["weight_scale"].repeat_interleave(128, 0).repeat_interleave(128, 1)
    return parts["weight"].float() * spread[:rows, :columns]


def _times(codes: Tensor, zeros: Tensor, scales: Tensor) -> Tensor:
    """Return (codes - zeros) * scales for `codes` [N, K], and `zeros` and `scales` [N, G]."""
    width = codes.shape[1] // scales.shape[1]
    return (codes - zeros.repeat_interleave(width, 1)) * scales.float().repeat_interleave(width, 1)

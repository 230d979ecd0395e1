"""Weights of an INT4 checkpoint in float32, whoever wrote it: AWQ, GPTQ, compressed-tensors (ours, llm-compressor's).

Written from the formats' own rules and plain torch; nothing of quantkit reads here.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

# Column of an AWQ word that each of its nibbles holds, lowest bits first.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# llm-compressor saves M2's experts under the names of its own modules.
PEER_NAMES = {".gate_proj.": ".w1.", ".up_proj.": ".w3.", ".down_proj.": ".w2."}
MARKS = ("qweight", "weight_packed")
FP8_BLOCK = 128


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of the checkpoint in `folder` in float32, quantized ones dequantized as `….weight`."""
    tensors = _read(folder)
    settings = json.loads((folder / "config.json").read_text()).get("quantization_config", {})
    for mark in MARKS:
        for name in [name for name in tensors if name.endswith(f".{mark}")]:
            prefix = name.removesuffix(mark)
            parts = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
            tensors[f"{prefix}weight"] = _dequantize(parts, settings)
    for name in [name for name, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn]:
        tensors[name] = widen(tensors[name], _block_scale(tensors, name))
    return {name: tensor.float() for name, tensor in tensors.items()}


def round_to_nearest(weight: Tensor, group_size: int, symmetric: bool) -> Tensor:
    """Return `weight` [N, K] rounded to 4 bits with the plain minimum and maximum of each group, as float32."""
    groups = weight.float().unflatten(1, (-1, group_size))
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    if symmetric:
        scale, zero = torch.maximum(-low, high) / 7.5, torch.tensor(8.0)
    else:
        scale = (high - low) / 15
        zero = torch.round(-low / scale).nan_to_num().clamp(0, 15)
    scale = torch.where(scale > 0, scale, 1.0)
    codes = (torch.round(groups / scale) + zero).clamp(0, 15)
    return ((codes - zero) * scale).flatten(1)


def widen(weight: Tensor, scale: Tensor) -> Tensor:
    """Return FP8 `weight` [N, K] times its block scales, as float32."""
    spread = scale.float().repeat_interleave(FP8_BLOCK, 0).repeat_interleave(FP8_BLOCK, 1)
    return weight.float() * spread[: weight.shape[0], : weight.shape[1]]


def _read(folder: Path) -> dict[str, Tensor]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118
                tensors[_checkpoint_name(name)] = shard.get_tensor(name)
    return tensors


def _checkpoint_name(name: str) -> str:
    if ".experts." in name:
        for theirs, official in PEER_NAMES.items():
            name = name.replace(theirs, official)
    return name


def _dequantize(parts: dict[str, Tensor], settings: dict[str, object]) -> Tensor:
    """One matrix [N, K] from the tensors of its module; what is left over is refused."""
    method = settings["quant_method"]
    if method == "compressed-tensors":
        codes, scales, zeros = _compressed(parts)
    elif method == "awq":
        codes, scales, zeros = _awq(parts)
    else:
        codes, scales, zeros = _gptq(parts, 0 if settings["checkpoint_format"] == "gptq_v2" else 1)
    assert not parts, f"tensors that a quantized matrix does not have: {sorted(parts)}"
    per_group = codes.shape[1] // scales.shape[1]
    return (codes - zeros.repeat_interleave(per_group, 1)) * scales.float().repeat_interleave(per_group, 1)


def _compressed(parts: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    words, scales = parts.pop("weight_packed"), parts.pop("weight_scale")
    rows, columns = parts.pop("weight_shape").tolist()
    bits = 32 * words.shape[1] // columns
    zeros = torch.full(scales.shape, 1 << (bits - 1))
    if "weight_zero_point" in parts:
        zeros = _unpack(parts.pop("weight_zero_point").T, bits).T
    codes = _unpack(words, bits)
    assert codes.shape == (rows, columns)
    return codes, scales, zeros


def _awq(parts: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    words, scales = parts.pop("qweight"), parts.pop("scales")
    assert 8 * words.shape[1] == scales.shape[1], "AWQ has 4 bits"
    natural = torch.tensor(AWQ_ORDER).argsort()

    def columns(packed: Tensor) -> Tensor:
        return _unpack(packed, 4).unflatten(1, (-1, 8))[:, :, natural].flatten(1)

    return columns(words).T, scales.T, columns(parts.pop("qzeros")).T


def _gptq(parts: dict[str, Tensor], zero_offset: int) -> tuple[Tensor, Tensor, Tensor]:
    words, scales, group = parts.pop("qweight"), parts.pop("scales"), parts.pop("g_idx")
    bits = 32 * words.shape[0] // len(group)
    per_group = len(group) // len(scales)
    assert torch.equal(group.long(), torch.arange(len(group)) // per_group), "columns are permuted"
    return _unpack(words.T, bits), scales.T, _unpack(parts.pop("qzeros"), bits).T + zero_offset


def _unpack(words: Tensor, bits: int) -> Tensor:
    """The values of int32 `words` [R, C], each word's lowest bits first, as int64 [R, C * 32 / bits]."""
    shifts = torch.arange(0, 32, bits)
    return (words.long()[:, :, None] >> shifts & ((1 << bits) - 1)).flatten(1)


def _block_scale(tensors: dict[str, Tensor], name: str) -> Tensor:
    inverse = tensors.pop(f"{name}_scale_inv", None)
    return tensors.pop(f"{name}_scale") if inverse is None else inverse

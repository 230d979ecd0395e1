"""Tests' own way to ggml and to the source weights: ctypes and torch, nothing of quantkit's."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors import safe_open
from xllamacpp import xllamacpp

LIBRARY = ctypes.CDLL(xllamacpp.__file__)
LIBRARY.ggml_quantize_chunk.restype = ctypes.c_size_t
LIBRARY.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate_inp.weight": "block_sparse_moe.gate.weight",
    "exp_probs_b.bias": "block_sparse_moe.e_score_correction_bias",
}
EXPERT_NAMES = {"ffn_gate_exps.weight": "w1", "ffn_down_exps.weight": "w2", "ffn_up_exps.weight": "w3"}
HEAD_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


class Source:
    """The checkpoint as the safetensors library and torch read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        self.experts = json.loads((folder / "config.json").read_text())["num_local_experts"]
        self._open: dict[str, object] = {}

    def stored(self, name: str) -> torch.Tensor:
        shard = self.weight_map[name]
        if shard not in self._open:
            self._open[shard] = safe_open(self.folder / shard, "pt")
        return self._open[shard].get_tensor(name)

    def float32(self, name: str) -> torch.Tensor:
        weight = self.stored(name)
        if weight.dtype != torch.float8_e4m3fn:
            return weight.float()
        scale = self.stored(name + "_scale_inv").repeat_interleave(128, 0).repeat_interleave(128, 1)
        return weight.float() * scale[: weight.shape[0], : weight.shape[1]]

    def gguf_tensor(self, name: str) -> np.ndarray:
        """The float32 weights behind GGUF tensor `name`, experts stacked."""
        if name in HEAD_NAMES:
            return self.float32(HEAD_NAMES[name]).numpy()
        _, layer, rest = name.split(".", 2)
        if rest in LAYER_NAMES:
            return self.float32(f"model.layers.{layer}.{LAYER_NAMES[rest]}").numpy()
        prefix = f"model.layers.{layer}.block_sparse_moe.experts"
        stack = [self.float32(f"{prefix}.{e}.{EXPERT_NAMES[rest]}.weight") for e in range(self.experts)]
        return torch.stack(stack).numpy()


def ggml_bytes(weights: np.ndarray, kind: gguf.GGMLQuantizationType, importance: np.ndarray | None = None) -> bytes:
    """The whole tensor through ggml_quantize_chunk, cast types included.

    `importance` [experts, columns] weighs each expert's columns; without it one call does the whole tensor.
    """
    source = np.ascontiguousarray(weights, np.float32)
    columns = source.shape[-1]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    packed = np.zeros(source.size // block * size, np.uint8)
    rows = source.size // columns
    experts = 1 if importance is None else len(importance)
    for expert in range(experts):
        LIBRARY.ggml_quantize_chunk(
            int(kind), source.ctypes.data, packed.ctypes.data, expert * (rows // experts) * columns, rows // experts,
            columns, None if importance is None else importance[expert].ctypes.data,
        )  # fmt: skip
    return packed.tobytes()

"""The keys of a MiniMax-M2 GGUF that say what the model is and where it came from."""

from __future__ import annotations

import math
import os
from pathlib import Path

import gguf

from quantkit.formats.gguf.metadata import QUANTIZATION_VERSION, Pair, float32, string, uint32
from quantkit.model import minimax_m2
from quantkit.model.spec import Kind, Model

SIGMOID_GATING = 2  # llama.cpp's expert_gating_func for sigmoid scores


def architecture_pairs(model: Model) -> list[Pair]:
    """Return the `minimax-m2.*` keys that llama.cpp builds the model from."""
    h = model.hparams
    numbers = {
        "block_count": h.n_layers,
        "context_length": h.context,
        "embedding_length": h.hidden,
        "feed_forward_length": h.expert_width,
        "attention.head_count": h.n_heads,
        "attention.head_count_kv": h.n_kv_heads,
        "expert_count": h.n_experts,
        "expert_used_count": h.n_experts_used,
        "expert_gating_func": SIGMOID_GATING,
        "attention.key_length": h.head_dim,
        "attention.value_length": h.head_dim,
        "expert_feed_forward_length": h.expert_width,
        "rope.dimension_count": h.rotary_dim,
    }
    constants = {"rope.freq_base": h.rope_theta, "attention.layer_norm_rms_epsilon": h.norm_eps}
    return [
        *(uint32(f"{model.architecture}.{key}", value) for key, value in numbers.items()),
        *(float32(f"{model.architecture}.{key}", value) for key, value in constants.items()),
    ]


def general_pairs(model: Model, folder: Path, file_type: int) -> list[Pair]:
    """Return the `general.*` keys: name from the folder, size label, file type, and the base model where known."""
    name = os.fsencode(folder.resolve().name).decode(errors="replace")
    pairs = [
        string("general.type", "model"),
        string("general.name", name),
        string("general.size_label", _size_label(model)),
        uint32("general.file_type", file_type),
        uint32("general.quantization_version", QUANTIZATION_VERSION),
    ]
    if name in minimax_m2.FAMILY:
        pairs += [
            uint32("general.base_model.count", 1),
            string("general.base_model.0.name", name),
            string("general.base_model.0.organization", minimax_m2.ORGANIZATION),
            string("general.base_model.0.repo_url", minimax_m2.FAMILY[name]),
        ]
    return pairs


def _size_label(model: Model) -> str:
    weights = dict.fromkeys(Kind, 0)
    for tensor in model.tensors:
        weights[tensor.role.kind] += math.prod(tensor.shape)
    total = sum(weights.values())
    one_expert = weights[Kind.EXPERT] // model.hparams.n_experts
    label: str = gguf.size_label(total, total - weights[Kind.EXPERT], one_expert, model.hparams.n_experts)
    return label

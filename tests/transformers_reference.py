"""transformers' MiniMax-M2 in float32, with weights from a GGUF (read by gguf-py) or from the FP8 checkpoint.

Nothing of quantkit reads here: the GGUF goes through gguf-py's reader and dequantization, the checkpoint through
safetensors and a block product of torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import gguf
import torch
from gguf.quants import dequantize
from safetensors import safe_open
from torch import Tensor
from transformers import MiniMaxM2Config, MiniMaxM2ForCausalLM

TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "exp_probs_b.bias": "mlp.e_score_correction_bias",
    "ffn_down_exps.weight": "mlp.experts.down_proj",
}
GATE, UP, GATE_UP = "ffn_gate_exps.weight", "ffn_up_exps.weight", "mlp.experts.gate_up_proj"


def model_from_gguf(parts: Sequence[Path], config: Path) -> MiniMaxM2ForCausalLM:
    """Return the model with the dequantized tensors of a GGUF in one or more `parts` and the sizes of config.json.

    The sizes come from the checkpoint and not from the GGUF's keys, so that a wrong key shows as a disagreement.
    """
    tensors: dict[str, Tensor] = {}
    for part in parts:
        for entry in gguf.GGUFReader(part).tensors:
            tensors[entry.name] = torch.from_numpy(dequantize(entry.data, entry.tensor_type).copy()).float()
    state = {name: tensors.pop(key) for key, name in TOP_NAMES.items()}
    for layer in range(json.loads(config.read_text())["num_hidden_layers"]):
        source, target = f"blk.{layer}.", f"model.layers.{layer}."
        state |= {target + name: tensors.pop(source + key) for key, name in LAYER_NAMES.items()}
        state[target + GATE_UP] = torch.cat([tensors.pop(source + GATE), tensors.pop(source + UP)], dim=1)
    assert not tensors, f"tensors that no layer has: {sorted(tensors)}"
    return _build(config, state)


def weight_types(parts: Sequence[Path]) -> dict[str, str]:
    """Return the GGUF type of each parameter of the model; those of stacked gate and up projections are equal."""
    types = {entry.name: entry.tensor_type.name for part in parts for entry in gguf.GGUFReader(part).tensors}
    named = {name: types.pop(key) for key, name in TOP_NAMES.items()}
    for key, kind in types.items():
        _, layer, name = key.split(".", 2)
        if name in (GATE, UP):
            parameter = f"model.layers.{layer}.{GATE_UP}"
            assert named.setdefault(parameter, kind) == kind
        else:
            named[f"model.layers.{layer}.{LAYER_NAMES[name]}"] = kind
    return named


def model_from_checkpoint(folder: Path) -> MiniMaxM2ForCausalLM:
    """Return the model with the FP8 weights of the checkpoint in `folder` times their block scales."""
    config = json.loads((folder / "config.json").read_text())
    tensors = _dequantized(folder, config["quantization_config"]["weight_block_size"])
    state = {name: tensor for name, tensor in tensors.items() if "block_sparse_moe" not in name}
    for layer in range(config["num_hidden_layers"]):
        moe, mlp = f"model.layers.{layer}.block_sparse_moe.", f"model.layers.{layer}.mlp."
        for name in ("gate.weight", "e_score_correction_bias"):
            state[mlp + name] = tensors[moe + name]
        w1, w2, w3 = (
            torch.stack([tensors[f"{moe}experts.{e}.{w}.weight"] for e in range(config["num_local_experts"])])
            for w in ("w1", "w2", "w3")
        )
        state[mlp + "experts.gate_up_proj"] = torch.cat([w1, w3], dim=1)
        state[mlp + "experts.down_proj"] = w2
    return _build(folder / "config.json", state)


@torch.no_grad()
def logits(model: MiniMaxM2ForCausalLM, ids: list[int]) -> Tensor:
    """Return float32 logits [T, V]: row t is for the token after ids[: t + 1]."""
    return model(torch.tensor([ids])).logits[0]


def logprobs(model: MiniMaxM2ForCausalLM, ids: list[int]) -> Tensor:
    """Return float64 log-probabilities [T, V] of the same rows."""
    return torch.log_softmax(logits(model, ids).double(), dim=-1)


def _dequantized(folder: Path, block: list[int]) -> dict[str, Tensor]:
    files = set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values())
    tensors: dict[str, Tensor] = {}
    for file in sorted(files):
        with safe_open(folder / file, framework="pt") as shard:
            tensors |= {name: shard.get_tensor(name).float() for name in shard.keys()}  # noqa: SIM118
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        weight = tensors[name.removesuffix("_scale_inv")]
        spread = tensors.pop(name).repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        weight *= spread[: weight.shape[0], : weight.shape[1]]
    return tensors


def _build(config: Path, state: dict[str, Tensor]) -> MiniMaxM2ForCausalLM:
    settings = json.loads(config.read_text())
    for key in ("quantization_config", "auto_map", "dtype"):
        settings.pop(key, None)
    model = MiniMaxM2ForCausalLM(MiniMaxM2Config(**settings)).float().eval()
    model.load_state_dict(state, strict=True)
    return model

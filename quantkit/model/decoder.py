"""What of a decoder layer comes from transformers: norms, attention, rotary embedding and router, as its own modules.

They are built without memory and get the checkpoint's tensors one layer at a time. Experts are not among them: those
are streamed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import MiniMaxM2Config
from transformers.models.minimax_m2.modeling_minimax_m2 import (
    MiniMaxM2Attention,
    MiniMaxM2RMSNorm,
    MiniMaxM2RotaryEmbedding,
    MiniMaxM2TopKRouter,
)

from quantkit.model.spec import HParams

# Parameter of the attention module: role of the tensor.
ATTENTION_ROLES = {
    "q_proj.weight": "attn_q",
    "k_proj.weight": "attn_k",
    "v_proj.weight": "attn_v",
    "q_norm.weight": "attn_q_norm",
    "k_norm.weight": "attn_k_norm",
}


@dataclass(frozen=True)
class AttentionHalf:
    """Everything of a layer before its experts.

    The output projection is kept apart from the attention module, whose own is the identity: its input is wanted.
    """

    input_norm: MiniMaxM2RMSNorm
    attention: MiniMaxM2Attention
    output: torch.Tensor  # [hidden, heads * head_dim]
    expert_norm: MiniMaxM2RMSNorm
    router: MiniMaxM2TopKRouter
    router_bias: torch.Tensor  # [experts], float32


def transformers_config(hparams: HParams) -> MiniMaxM2Config:
    """The dimensions as transformers wants them; not parsed from config.json, whose keys changed over versions."""
    config = MiniMaxM2Config(
        vocab_size=hparams.vocab,
        hidden_size=hparams.hidden,
        intermediate_size=hparams.expert_width,
        num_hidden_layers=hparams.n_layers,
        num_attention_heads=hparams.n_heads,
        num_key_value_heads=hparams.n_kv_heads,
        head_dim=hparams.head_dim,
        num_local_experts=hparams.n_experts,
        num_experts_per_tok=hparams.n_experts_used,
        max_position_embeddings=hparams.context,
        rms_norm_eps=hparams.norm_eps,
        bos_token_id=None,
        eos_token_id=None,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": hparams.rope_theta,
            # It multiplies by head_dim and cuts off: half a dimension more keeps rounding errors out.
            "partial_rotary_factor": (hparams.rotary_dim + 0.5) / hparams.head_dim,
        },
    )
    config._attn_implementation = "sdpa"
    return config


def rotary_embedding(hparams: HParams, device: torch.device) -> MiniMaxM2RotaryEmbedding:
    """The module that turns positions into cosines and sines."""
    return MiniMaxM2RotaryEmbedding(transformers_config(hparams)).to(device)


def rms_norm(weight: torch.Tensor, hparams: HParams) -> MiniMaxM2RMSNorm:
    """An RMS norm with the given weight [K]."""
    with torch.device("meta"):
        norm = MiniMaxM2RMSNorm(len(weight), hparams.norm_eps)
    norm.load_state_dict({"weight": weight}, assign=True)
    return norm.requires_grad_(False)


def attention_half(
    hparams: HParams, fetch: Callable[[str, torch.dtype], torch.Tensor], dtype: torch.dtype
) -> AttentionHalf:
    """Build a layer's modules with tensors from `fetch(role, dtype)`: projections in `dtype`, the rest in float32."""
    config = transformers_config(hparams)
    with torch.device("meta"):
        attention = MiniMaxM2Attention(config, layer_idx=0)
        router = MiniMaxM2TopKRouter(config)
    attention.o_proj = nn.Identity()
    attention.load_state_dict(
        {name: fetch(role, dtype) for name, role in ATTENTION_ROLES.items()}, assign=True, strict=True
    )
    router.load_state_dict({"weight": fetch("ffn_gate_inp", torch.float32)}, assign=True)
    return AttentionHalf(
        input_norm=rms_norm(fetch("attn_norm", torch.float32), hparams),
        attention=attention.requires_grad_(False).eval(),
        output=fetch("attn_output", dtype),
        expert_norm=rms_norm(fetch("ffn_norm", torch.float32), hparams),
        router=router.requires_grad_(False),
        router_bias=fetch("exp_probs_b", torch.float32),
    )

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

from quantkit.forward.rows import rms_norm
from quantkit.model.spec import HParams

# Parameter of the attention module: role of the tensor.
ATTENTION_ROLES = {
    "q_proj.weight": "attn_q",
    "k_proj.weight": "attn_k",
    "v_proj.weight": "attn_v",
}


@dataclass(frozen=True)
class AttentionHalf:
    """Everything of a layer before its experts.

    The output projection is kept apart from the attention module, whose own is the identity: its input is wanted.
    """

    input_norm: StreamedRMSNorm
    attention: MiniMaxM2Attention
    output: torch.Tensor  # [hidden, heads * head_dim]
    expert_norm: StreamedRMSNorm
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


class StreamedRMSNorm(MiniMaxM2RMSNorm):
    """transformers' norm with its five passes over memory made two on the CPU, and the output's dtype chosen."""

    def __init__(self, weight: torch.Tensor, epsilon: float, dtype: torch.dtype) -> None:
        """`weight` is float32 [K]; results are in `dtype`."""
        with torch.device("meta"):
            super().__init__(len(weight), epsilon)
        self.load_state_dict({"weight": weight}, assign=True)
        self.requires_grad_(False)
        self.dtype = dtype

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Norm of the last axis, computed in float32."""
        if hidden_states.device.type == "cpu":
            return rms_norm(hidden_states, self.weight, self.variance_epsilon, self.dtype)
        result: torch.Tensor = super().forward(hidden_states.float())
        return result.to(self.dtype)


def attention_half(
    hparams: HParams, fetch: Callable[[str, torch.dtype], torch.Tensor], dtype: torch.dtype
) -> AttentionHalf:
    """Build a layer's modules with tensors from `fetch(role, dtype)`: projections in `dtype`, the rest in float32."""

    def norm(role: str) -> StreamedRMSNorm:
        return StreamedRMSNorm(fetch(role, torch.float32), hparams.norm_eps, dtype)

    config = transformers_config(hparams)
    with torch.device("meta"):
        attention = MiniMaxM2Attention(config, layer_idx=0)
        router = MiniMaxM2TopKRouter(config)  # type: ignore[no-untyped-call]
    norms = {"q_norm": norm("attn_q_norm"), "k_norm": norm("attn_k_norm")}
    attention.add_module("o_proj", nn.Identity())
    for name, module in norms.items():
        attention.add_module(name, module)
    weights = {name: fetch(role, dtype) for name, role in ATTENTION_ROLES.items()}
    weights |= {f"{name}.weight": module.weight for name, module in norms.items()}
    attention.load_state_dict(weights, assign=True)
    router.load_state_dict({"weight": fetch("ffn_gate_inp", torch.float32)}, assign=True)
    return AttentionHalf(
        input_norm=norm("attn_norm"),
        attention=attention.requires_grad_(False).eval(),
        output=fetch("attn_output", dtype),
        expert_norm=norm("ffn_norm"),
        router=router.requires_grad_(False),
        router_bias=fetch("exp_probs_b", torch.float32),
    )

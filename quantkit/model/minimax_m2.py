"""MiniMax-M2 as data: M2, M2.1, M2.5 and M2.7 share one architecture and differ in context length only."""

from __future__ import annotations

from quantkit.model.spec import Kind, Role

ARCHITECTURE = "MiniMaxM2ForCausalLM"
MODEL_TYPES = ("minimax_m2", "minimax")
GGUF_ARCHITECTURE = "minimax-m2"
GGUF_TOKENIZER_PRE = "minimax-m2"

FLOATS = ("BF16", "F16", "F32")
WEIGHTS = ("F8_E4M3", *FLOATS)
SCALE_SUFFIX = "_scale_inv"
SCALE_DTYPES = ("F32", "BF16")

# Symbols of the shapes below, from the hyperparameters.
DIMENSIONS = {
    "vocab": lambda h: h.vocab,
    "hidden": lambda h: h.hidden,
    "q": lambda h: h.n_heads * h.head_dim,
    "kv": lambda h: h.n_kv_heads * h.head_dim,
    "experts": lambda h: h.n_experts,
    "width": lambda h: h.expert_width,
}

_LAYER = "model.layers.{layer}"
_MOE = _LAYER + ".block_sparse_moe"
_EXPERT = _MOE + ".experts.{expert}"
_ATTENTION = _LAYER + ".self_attn"

# Before the layers and behind them, in the checkpoint's files as in the model.
FIRST_ROLES = (
    Role("token_embd", Kind.EMBEDDING, "model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden"), FLOATS),
)
LAST_ROLES = (
    Role("output_norm", Kind.NORM, "model.norm.weight", "output_norm.weight", ("hidden",), FLOATS),
    Role("output", Kind.EMBEDDING, "lm_head.weight", "output.weight", ("vocab", "hidden"), FLOATS),
)
HEAD_ROLES = (*FIRST_ROLES, *LAST_ROLES)


def _layer_role(
    name: str, kind: Kind, source: str, shape: tuple[str, ...], dtypes: tuple[str, ...], suffix: str = "weight"
) -> Role:
    return Role(name, kind, source, "blk.{layer}." + f"{name}.{suffix}", shape, dtypes)


LAYER_ROLES = (
    _layer_role("attn_norm", Kind.NORM, _LAYER + ".input_layernorm.weight", ("hidden",), FLOATS),
    _layer_role("attn_q", Kind.LINEAR, _ATTENTION + ".q_proj.weight", ("q", "hidden"), WEIGHTS),
    _layer_role("attn_k", Kind.LINEAR, _ATTENTION + ".k_proj.weight", ("kv", "hidden"), WEIGHTS),
    _layer_role("attn_v", Kind.LINEAR, _ATTENTION + ".v_proj.weight", ("kv", "hidden"), WEIGHTS),
    _layer_role("attn_output", Kind.LINEAR, _ATTENTION + ".o_proj.weight", ("hidden", "q"), WEIGHTS),
    # One RMS norm over the whole q and the whole k, not one per head.
    _layer_role("attn_q_norm", Kind.NORM, _ATTENTION + ".q_norm.weight", ("q",), FLOATS),
    _layer_role("attn_k_norm", Kind.NORM, _ATTENTION + ".k_norm.weight", ("kv",), FLOATS),
    _layer_role("ffn_norm", Kind.NORM, _LAYER + ".post_attention_layernorm.weight", ("hidden",), FLOATS),
    _layer_role("ffn_gate_inp", Kind.ROUTER, _MOE + ".gate.weight", ("experts", "hidden"), FLOATS),
    _layer_role("exp_probs_b", Kind.ROUTER, _MOE + ".e_score_correction_bias", ("experts",), FLOATS, "bias"),
    _layer_role("ffn_gate_exps", Kind.EXPERT, _EXPERT + ".w1.weight", ("width", "hidden"), WEIGHTS),
    _layer_role("ffn_up_exps", Kind.EXPERT, _EXPERT + ".w3.weight", ("width", "hidden"), WEIGHTS),
    _layer_role("ffn_down_exps", Kind.EXPERT, _EXPERT + ".w2.weight", ("hidden", "width"), WEIGHTS),
)

# Published under these names; the base-model record of an output is only written for them.
FAMILY = {name: f"https://huggingface.co/MiniMaxAI/{name}" for name in (
    "MiniMax-M2", "MiniMax-M2.1", "MiniMax-M2.5", "MiniMax-M2.7"
)}  # fmt: skip
ORGANIZATION = "MiniMaxAI"

# Role of a weight: the place of a layer whose rows enter it (see forward/statistics.py).
INPUT_SITES = {
    "attn_q": "attention_input",
    "attn_k": "attention_input",
    "attn_v": "attention_input",
    "attn_output": "attention_output",
    "ffn_gate_inp": "router",
    "ffn_gate_exps": "expert_input",
    "ffn_up_exps": "expert_input",
    "ffn_down_exps": "expert_middle",
}

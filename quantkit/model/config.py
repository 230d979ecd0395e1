"""config.json to hyperparameters, refusing what the architecture's data does not describe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeGuard

from quantkit.errors import BadInput
from quantkit.model import minimax_m2
from quantkit.model.spec import HParams

# Hyperparameter -> key of config.json. `rotary_dim` and `rope_theta` have a second spelling, see `_rope`.
INTEGER_KEYS = {
    "n_layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "expert_width": "intermediate_size",
    "n_experts": "num_local_experts",
    "n_experts_used": "num_experts_per_tok",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab": "vocab_size",
    "context": "max_position_embeddings",
}

# Settings that every M2 has; another value would need another forward pass than the runtimes have.
FIXED = {
    "hidden_act": "silu",
    "scoring_func": "sigmoid",
    "use_qk_norm": True,
    "qk_norm_type": "per_layer",
    "use_routing_bias": True,
    "shared_intermediate_size": 0,
    "tie_word_embeddings": False,
}

DEFAULT_BLOCK = (128, 128)


def hparams_from_config(config: dict[str, Any], path: Path) -> HParams:
    """Return the hyperparameters of `config`; BadInput naming `path` and key when one is missing or unsupported."""
    architectures = config.get("architectures") or []
    known = isinstance(architectures, list) and minimax_m2.ARCHITECTURE in architectures
    model_type = config.get("model_type")
    # Early M2 configs say "minimax", a name shared with older models: there the architecture decides.
    unambiguous = model_type == minimax_m2.MODEL_TYPES[0] and not architectures
    named = model_type in minimax_m2.MODEL_TYPES and known
    if not (named or unambiguous):
        raise BadInput(
            f"{path}: model_type {model_type!r} with architectures {architectures!r} is not supported; "
            f"quantkit reads {minimax_m2.ARCHITECTURE} ({', '.join(minimax_m2.MODEL_TYPES)})"
        )
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise BadInput(f"{path}: {key} is {config[key]!r}; this architecture needs {value!r}")
    integers = {name: _positive_integer(config, key, path) for name, key in INTEGER_KEYS.items()}
    rope_theta, rotary_dim = _rope(config, integers["head_dim"], path)
    eps = config.get("rms_norm_eps")
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise BadInput(f"{path}: rms_norm_eps is {eps!r}; a small positive number is needed")
    return HParams(**integers, rotary_dim=rotary_dim, rope_theta=rope_theta, norm_eps=eps)


def weight_block(config: dict[str, Any], path: Path) -> tuple[int, int]:
    """Return the FP8 block [rows, columns] of `quantization_config`; BadInput for a scheme other than FP8 blocks."""
    quantization = config.get("quantization_config")
    if quantization is None:
        return DEFAULT_BLOCK
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if not isinstance(quantization, dict) or method != "fp8":
        raise BadInput(f"{path}: already quantized with {method!r}; give the original FP8 or a BF16 checkpoint")
    block = quantization.get("weight_block_size")
    if not isinstance(block, list) or len(block) != 2 or not all(_is_positive_integer(n) for n in block):
        raise BadInput(f"{path}: quantization_config.weight_block_size is {block!r}; two positive numbers are needed")
    return block[0], block[1]


def _positive_integer(config: dict[str, Any], key: str, path: Path) -> int:
    value = config.get(key)
    if not _is_positive_integer(value):
        raise BadInput(f"{path}: {key} is {value!r}; a positive whole number is needed")
    return value


def _is_positive_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_positive(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _rope(config: dict[str, Any], head_dim: int, path: Path) -> tuple[float, int]:
    # Transformers >= 5 re-saves rotary_dim as rope_parameters.partial_rotary_factor and moves rope_theta there.
    parameters = config.get("rope_parameters") or {}
    if not isinstance(parameters, dict):
        raise BadInput(f"{path}: rope_parameters is {parameters!r}; a JSON object is needed")
    if parameters.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        raise BadInput(f"{path}: scaled rotary embeddings are not part of this architecture")
    theta = config.get("rope_theta", parameters.get("rope_theta"))
    rotary = config.get("rotary_dim")
    factor = parameters.get("partial_rotary_factor")
    if rotary is None and _is_positive(factor):
        rotary = round(head_dim * factor)
    if not _is_positive(theta):
        raise BadInput(f"{path}: rope_theta is {theta!r}; a positive number is needed")
    if not _is_positive_integer(rotary) or rotary > head_dim:
        raise BadInput(f"{path}: rotary_dim is {rotary!r}; a number from 1 to head_dim {head_dim} is needed")
    return float(theta), rotary

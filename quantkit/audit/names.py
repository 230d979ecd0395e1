"""Names of a checkpoint's tensors as roles of the architecture, and how a module's weights are stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from quantkit.checkpoint.header import TensorEntry
from quantkit.model import minimax_m2
from quantkit.model.spec import HParams, Kind, Role

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"block_sparse_moe\.experts\.(\d+)\.(.+)")
# Matrices of experts under names that vLLM's MiniMax-M2 does not look for: per expert, and stacked.
RENAMED_EXPERT = re.compile(
    r"model\.layers\.\d+\.(?:block_sparse_moe|mlp)\.experts\.\d+\.(?:gate|up|down|gate_up)_proj\."
)
MOVED_EXPERT = re.compile(r"model\.layers\.\d+\.mlp\.experts\.\d+\.w[123]\.")
STACKED_EXPERTS = re.compile(
    r"model\.layers\.\d+\.(?:block_sparse_moe|mlp)\.(?:experts|switch_mlp)\.(?:gate_up_proj|gate_proj|up_proj|down_proj|w13|w1|w2|w3)"
)

FP8_DTYPES = ("F8_E4M3", "F8_E5M2")
PLAIN_DTYPES = ("BF16", "F16", "F32", "F64")
# How a module's weight is stored.
PLAIN, FP8, WORDS, COMPRESSED, OTHER = "float", "FP8", "AWQ or GPTQ words", "compressed-tensors words", "another form"
# Tensors that stand for one weight beside "weight" itself.
WEIGHT_SUFFIXES = ("weight", "qweight", "weight_packed")


@dataclass(frozen=True)
class Place:
    """A module of the model: its role, layer and expert."""

    role: Role
    layer: int | None
    expert: int | None


def _stem(source: str) -> str:
    """A role's name behind layer and expert, without the last part: "self_attn.q_proj", "w1"."""
    stem = source.removeprefix("model.layers.{layer}.").removeprefix("block_sparse_moe.experts.{expert}.")
    return stem.rpartition(".")[0] if stem.endswith(".weight") else stem


_HEAD = {role.source.removesuffix(".weight"): role for role in minimax_m2.HEAD_ROLES}
_IN_LAYER = {_stem(role.source): role for role in minimax_m2.LAYER_ROLES if role.kind is not Kind.EXPERT}
_IN_EXPERT = {_stem(role.source): role for role in minimax_m2.LAYER_ROLES if role.kind is Kind.EXPERT}


def place_of(module: str) -> Place | None:
    """The place of a module such as "model.layers.3.block_sparse_moe.experts.7.w1"; None: not of this architecture.

    The routing bias has no module of its own: its full name is taken for one.
    """
    if module in _HEAD:
        return Place(_HEAD[module], None, None)
    layer = _LAYER.fullmatch(module)
    if layer is None:
        return None
    expert = _EXPERT.fullmatch(layer[2])
    if expert is not None:
        role = _IN_EXPERT.get(expert[2])
        return None if role is None else Place(role, int(layer[1]), int(expert[1]))
    role = _IN_LAYER.get(layer[2])
    return None if role is None else Place(role, int(layer[1]), None)


def layer_of(name: str) -> int | None:
    """The layer that a tensor's name speaks of."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


@cache
def role_shape(role: Role, hparams: HParams) -> tuple[int, ...]:
    """Shape of one tensor of `role`, without the expert axis."""
    return tuple(minimax_m2.DIMENSIONS[symbol](hparams) for symbol in role.shape)


def storage(parts: Mapping[str, TensorEntry]) -> str | None:
    """How the weight of a module with these tensors is stored; None where there is no weight among them."""
    if "qweight" in parts:
        return WORDS
    if "weight_packed" in parts:
        return COMPRESSED if parts["weight_packed"].dtype == "I32" else OTHER
    if "weight" not in parts:
        return None
    dtype = parts["weight"].dtype
    if dtype in FP8_DTYPES:
        return FP8
    return PLAIN if dtype in PLAIN_DTYPES else OTHER

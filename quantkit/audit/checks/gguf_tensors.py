"""Checks of a GGUF's tensors: types that overflow or must not be, what is missing or named otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from quantkit.audit.findings import Check, Severity, listed
from quantkit.audit.gguf_model import GGUFModel
from quantkit.inspect.gguf import FLOAT_TYPES, ROLES, role_of
from quantkit.model import minimax_m2
from quantkit.model.spec import Kind, Role
from quantkit.recipe.overflow import UNSAFE_TYPES, guarded_type

BIAS = "exp_probs_b"
# What some converters fuse; no MiniMax-M2 of llama.cpp's releases was tested with it.
FUSED = re.compile(r"blk\.\d+\.(?:ffn_gate_up_exps|attn_qkv)\.")
# Symbol of a shape -> key of the dimension.
DIMENSIONS = {"hidden": "embedding_length", "width": "expert_feed_forward_length", "experts": "expert_count"}


def _missing(wanted: Callable[[Role], bool], what: str) -> Callable[[GGUFModel], Iterator[str]]:
    def find(model: GGUFModel) -> Iterator[str]:
        fused = any(FUSED.match(name) for name in model.tensors)
        names = [name for role, name in model.expected if wanted(role) and name not in model.tensors]
        if names and model.is_readable and not fused:
            yield f"{len(names)} {what} are missing: {listed(names)}"

    return find


def _quantized(kind: Kind, what: str) -> Callable[[GGUFModel], Iterator[str]]:
    def find(model: GGUFModel) -> Iterator[str]:
        names = [
            f"{tensor.name} {tensor.type}"
            for tensor in model.tensors.values()
            if (role := ROLES.get(role_of(tensor.name))) and role.kind is kind and tensor.type not in FLOAT_TYPES
        ]
        if names:
            yield f"{len(names)} {what} are quantized: {listed(names)}"

    return find


def _unsafe(model: GGUFModel) -> Iterator[str]:
    for tensor in model.last_layer_downs():
        if tensor.type in UNSAFE_TYPES:
            safe = guarded_type(tensor.name, tensor.type, model.layers or 0)
            yield f"tensor {tensor.name} is {tensor.type}; {safe} is safe there"


def _half(model: GGUFModel) -> Iterator[str]:
    for tensor in model.last_layer_downs():
        if tensor.type == "F16":
            yield f"tensor {tensor.name} is F16: every activation there must stay below 65504"


def _fused(model: GGUFModel) -> Iterator[str]:
    if names := [name for name in model.tensors if FUSED.match(name)]:
        yield f"{len(names)} tensors are fused: {listed(names)}"


def _unknown(model: GGUFModel) -> Iterator[str]:
    known = {name for _, name in model.expected}
    names = [name for name in model.tensors if name not in known and not FUSED.match(name)]
    if names and model.layers is not None:
        kind = f"{minimax_m2.GGUF_ARCHITECTURE} with {model.layers} layers"
        yield f"{len(names)} tensors are not known to {kind}: {listed(names)}"


def _shapes(model: GGUFModel) -> Iterator[str]:
    """Against the dimensions in the keys, as far as these are whole numbers."""
    sizes = {symbol: model.number(key) for symbol, key in DIMENSIONS.items()}
    heads = {"q": "head_count", "kv": "head_count_kv"}
    length = model.number("attention.key_length")
    for symbol, key in heads.items():
        count = model.number(f"attention.{key}")
        sizes[symbol] = count * length if isinstance(count, int) and isinstance(length, int) else None
    tokens = model.keys.get("tokenizer.ggml.tokens")
    sizes["vocab"] = len(tokens) if isinstance(tokens, list) else None
    wrong = []
    for role, name in model.expected:
        tensor = model.tensors.get(name)
        stack = ("experts",) if role.kind is Kind.EXPERT else ()
        shape = [sizes[symbol] for symbol in (*stack, *role.shape)]
        if tensor is not None and all(isinstance(size, int) for size in shape) and list(tensor.shape) != shape:
            wrong.append(f"{name} is {list(tensor.shape)}, not {shape}")
    if wrong:
        yield f"{len(wrong)} tensors have other shapes than the keys say: {listed(wrong)}"


def _narrow(model: GGUFModel) -> Iterator[str]:
    names = [f"{tensor.name} {tensor.type}" for tensor in model.tensors.values() if role_of(tensor.name) == BIAS]
    if narrow := [name for name in names if name.endswith(("BF16", "F16"))]:
        yield f"{len(narrow)} routing biases have fewer bits than the original's F32: {listed(narrow)}"


AGAIN = "convert it again from the original"
CHECKS = (
    Check("bias-missing", Severity.ERROR, _missing(lambda role: role.name == BIAS, "routing biases"), AGAIN),
    Check("experts-missing", Severity.ERROR,
          _missing(lambda role: role.kind is Kind.EXPERT, "stacks of experts"), AGAIN),
    Check("tensors-missing", Severity.ERROR,
          _missing(lambda role: role.kind is not Kind.EXPERT and role.name != BIAS, "tensors"), AGAIN),
    Check("router-quantized", Severity.ERROR, _quantized(Kind.ROUTER, "routers or routing biases"),
          "keep ffn_gate_inp and exp_probs_b in F32"),
    Check("norm-quantized", Severity.ERROR, _quantized(Kind.NORM, "norms"), "keep norms in F32"),
    Check("down-experts-unsafe", Severity.ERROR, _unsafe,
          "llama.cpp's CUDA kernels for this type overflow on the last layer and prompts end in NaN: quantize again "
          "with --tensor-type for it (quantkit gguf does), or build llama.cpp with -DGGML_CUDA_FORCE_CUBLAS=ON"),
    Check("shape", Severity.ERROR, _shapes, "keys and tensors are of different models; " + AGAIN),
    Check("experts-fused", Severity.WARNING, _fused, "convert without --fuse options: some runtimes answer gibberish"),
    Check("bias-narrow", Severity.WARNING, _narrow, AGAIN + ", with F32 biases"),
    Check("down-experts-half", Severity.NOTE, _half, "BF16 or Q8_0 are safe there"),
    Check("tensor-unknown", Severity.ERROR, _unknown, "llama.cpp refuses a wrong number of tensors; " + AGAIN),
)  # fmt: skip

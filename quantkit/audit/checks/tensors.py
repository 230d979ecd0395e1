"""Checks of a safetensors checkpoint's tensors: what is missing, quantized that must not be, or named otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator

from quantkit.audit.findings import Check, Severity, listed
from quantkit.audit.folder import Folder
from quantkit.audit.names import (
    FP8_DTYPES,
    MOVED_EXPERT,
    PLAIN,
    PLAIN_DTYPES,
    RENAMED_EXPERT,
    STACKED_EXPERTS,
    WEIGHT_SUFFIXES,
    layer_of,
    place_of,
    role_shape,
    storage,
)
from quantkit.model import minimax_m2
from quantkit.model.spec import Kind, Role

BIAS = "exp_probs_b"
# What only layers that predict further tokens have.
PREDICTION = re.compile(r"\.(?:enorm|hnorm|eh_proj|shared_head)\b")
ROUTER = "ffn_gate_inp"
# What a module may hold beside its weight: scales, zeros, order; scales of activations and of the key-value cache.
COMPANIONS = re.compile(
    r"(?:weight_scale(?:_inv)?|weight_shape|weight_zero_point|weight_g_idx|scales|qzeros|g_idx|input_scale|weight_global_scale"
    r"|input_global_scale|k_scale|v_scale|q_scale|output_scale)"
)


def expected(folder: Folder) -> Iterator[tuple[Role, str]]:
    """Every weight that the dimensions in config.json promise, with the name it has in an unquantized checkpoint."""
    if folder.hparams is None:
        return
    for role in minimax_m2.HEAD_ROLES:
        yield role, role.source
    for layer in folder.layers():
        for role in minimax_m2.LAYER_ROLES:
            for expert in range(folder.hparams.n_experts if role.kind is Kind.EXPERT else 1):
                yield role, role.source.format(layer=layer, expert=expert)


def _is_stored(folder: Folder, name: str) -> bool:
    module, _, suffix = name.rpartition(".")
    parts = folder.modules.get(module, {})
    return suffix in parts or (suffix == "weight" and any(form in parts for form in WEIGHT_SUFFIXES))


def _missing(folder: Folder, wanted: bool, kind: Kind | None) -> list[str]:
    """Missing weights of one kind, or (not `wanted`) of all others; the routing bias has a check of its own."""
    return [
        name
        for role, name in expected(folder)
        if role.name != BIAS and (role.kind is kind) is wanted and not _is_stored(folder, name)
    ]


def _no_tensors(folder: Folder) -> Iterator[str]:
    if not folder.tensors:
        yield f"{folder.named('*.safetensors')}: no tensor can be read"


def _bias_missing(folder: Folder) -> Iterator[str]:
    names = [name for role, name in expected(folder) if role.name == BIAS and not _is_stored(folder, name)]
    if names and folder.is_complete:
        yield f"{len(names)} routing biases are missing: {listed(names)}"


def _experts_missing(folder: Folder) -> Iterator[str]:
    names = _missing(folder, True, Kind.EXPERT)
    otherwise = next(_experts_renamed(folder), None) or next(_experts_stacked(folder), None)
    if names and folder.is_complete and otherwise is None:
        yield f"{len(names)} matrices of experts are missing: {listed(names)}"


def _tensors_missing(folder: Folder) -> Iterator[str]:
    names = _missing(folder, False, Kind.EXPERT)
    if names and folder.is_complete:
        yield f"{len(names)} tensors are missing: {listed(names)}"


def _experts_renamed(folder: Folder) -> Iterator[str]:
    names = [name for name in folder.tensors if RENAMED_EXPERT.match(name) or MOVED_EXPERT.match(name)]
    if names:
        yield f"{len(names)} tensors of experts are not named block_sparse_moe.experts.N.w1, w2, w3: {listed(names)}"


def _experts_stacked(folder: Folder) -> Iterator[str]:
    names = [name for name in folder.tensors if STACKED_EXPERTS.match(name)]
    if names:
        yield f"{len(names)} tensors hold the experts of a layer in one: {listed(names)}"


def _quantized(folder: Folder, kinds: tuple[Kind, ...]) -> list[str]:
    """Modules of these kinds whose weight is not stored in float."""
    found = []
    for module, parts in folder.modules.items():
        place = place_of(module)
        if place is not None and place.role.kind in kinds and storage(parts) not in (PLAIN, None):
            found.append(module)
        bias = parts.get("e_score_correction_bias")
        if bias is not None and Kind.ROUTER in kinds and bias.dtype not in PLAIN_DTYPES:
            found.append(bias.name)
    return found


def _router_quantized(folder: Folder) -> Iterator[str]:
    if names := _quantized(folder, (Kind.ROUTER,)):
        yield f"{len(names)} routers are quantized: {listed(names)}"


def _norm_quantized(folder: Folder) -> Iterator[str]:
    if names := _quantized(folder, (Kind.NORM,)):
        yield f"{len(names)} norms are quantized: {listed(names)}"


def _embedding_quantized(folder: Folder) -> Iterator[str]:
    if names := _quantized(folder, (Kind.EMBEDDING,)):
        yield f"{listed(names)}: quantized"


def _narrow(folder: Folder, role_name: str) -> list[str]:
    found = []
    for role, name in expected(folder):
        entry = folder.tensors.get(name) if role.name == role_name else None
        if entry is not None and entry.dtype in ("BF16", "F16"):
            found.append(f"{name} {entry.dtype}")
    return found


def _bias_narrow(folder: Folder) -> Iterator[str]:
    if names := _narrow(folder, BIAS):
        yield f"{len(names)} routing biases have fewer bits than the original's F32: {listed(names)}"


def _router_narrow(folder: Folder) -> Iterator[str]:
    if names := _narrow(folder, ROUTER):
        yield f"{len(names)} routers have fewer bits than the original's F32: {listed(names)}"


def _shapes(folder: Folder) -> Iterator[str]:
    if folder.hparams is None:
        return
    wrong = []
    for role, name in expected(folder):
        entry, shape = folder.tensors.get(name), role_shape(role, folder.hparams)
        if entry is not None and entry.dtype in (*PLAIN_DTYPES, *FP8_DTYPES) and entry.shape != shape:
            wrong.append(f"{name} is {list(entry.shape)}, not {list(shape)}")
    if wrong:
        yield f"{len(wrong)} tensors have other shapes than config.json says: {listed(wrong)}"


def _mtp_layers(folder: Folder) -> set[int]:
    """Layers that only predict further tokens, if there are any.

    config.json promises three of them in every M2, so that a wrong number of layers would hide decoder layers here.
    """
    layers = folder.hparams.n_layers if folder.hparams else 0
    extra = folder.config.get("num_mtp_modules")
    promised = range(layers, layers + (extra if isinstance(extra, int) and not isinstance(extra, bool) else 0))
    predicting = {layer_of(name) for name in folder.tensors if PREDICTION.search(name)}
    return {layer for layer in predicting if layer is not None and layer in promised}


def _beyond(folder: Folder) -> list[tuple[int, str]]:
    if folder.hparams is None:
        return []
    layers = ((layer_of(name), name) for name in folder.tensors)
    return [(layer, name) for layer, name in layers if layer is not None and layer >= folder.hparams.n_layers]


def _prediction_layers(folder: Folder) -> Iterator[str]:
    if names := [name for layer, name in _beyond(folder) if layer in _mtp_layers(folder)]:
        yield f"{len(names)} tensors of multi-token-prediction layers: {listed(names)}"


def _layers_beyond(folder: Folder) -> Iterator[str]:
    if names := [name for layer, name in _beyond(folder) if layer not in _mtp_layers(folder)]:
        yield (
            f"{len(names)} tensors belong to layers that config.json (num_hidden_layers "
            f"{folder.config.get('num_hidden_layers')}) does not have: {listed(names)}"
        )


def _experts_beyond(folder: Folder) -> Iterator[str]:
    count = folder.hparams.n_experts if folder.hparams else 0
    places = ((module, place_of(module)) for module in folder.modules)
    extra = [module for module, place in places if place and place.expert is not None and place.expert >= count > 0]
    if extra:
        yield f"{len(extra)} modules belong to experts beyond config.json's num_local_experts {count}: {listed(extra)}"


def _unknown(folder: Folder) -> Iterator[str]:
    if folder.hparams is None:
        return
    beyond = {name for _, name in _beyond(folder)}
    known = {name for _, name in expected(folder)}
    named = (MOVED_EXPERT, RENAMED_EXPERT, STACKED_EXPERTS)
    extra = []
    for module, parts in folder.modules.items():
        place = place_of(module)
        for suffix, entry in parts.items():
            belongs = place is not None and (suffix in WEIGHT_SUFFIXES or COMPANIONS.fullmatch(suffix))
            scale = entry.name.endswith(("k_scale", "v_scale", "q_scale"))
            if not belongs and not scale and entry.name not in known | beyond:
                extra += [] if any(pattern.match(entry.name) for pattern in named) else [entry.name]
    if extra:
        yield f"{len(extra)} tensors are not known to {minimax_m2.ARCHITECTURE}: {listed(extra)}"


CHECKS = (
    Check("no-tensors", Severity.ERROR, _no_tensors, "upload or download the weights again"),
    Check("bias-missing", Severity.ERROR, _bias_missing,
          "copy e_score_correction_bias from the original as F32; without it tokens go to other experts"),
    Check("experts-missing", Severity.ERROR, _experts_missing, "make or download the checkpoint again"),
    Check("tensors-missing", Severity.ERROR, _tensors_missing, "make or download the checkpoint again"),
    Check("experts-renamed", Severity.ERROR, _experts_renamed,
          "rename them (gate_proj w1, down_proj w2, up_proj w3): vLLM loads the file without them and answers noise"),
    Check("experts-stacked", Severity.ERROR, _experts_stacked,
          "write one matrix per expert under the original's names: vLLM and SGLang load no other"),
    Check("router-quantized", Severity.ERROR, _router_quantized,
          "keep block_sparse_moe.gate in F32 as in the original; runtimes have no quantized router"),
    Check("norm-quantized", Severity.ERROR, _norm_quantized, "keep norms as in the original"),
    Check("embedding-quantized", Severity.WARNING, _embedding_quantized,
          "keep embeddings and head as in the original, or try whether your runtime loads them"),
    Check("bias-narrow", Severity.WARNING, _bias_narrow, "copy the original's F32"),
    Check("router-narrow", Severity.NOTE, _router_narrow, "the original's F32 tells nearly equal experts apart"),
    Check("shape", Severity.ERROR, _shapes, "config.json and weights are of different models; take both from one"),
    Check("layer-count", Severity.ERROR, _layers_beyond, "take config.json from the original"),
    Check("expert-count", Severity.ERROR, _experts_beyond, "take config.json from the original"),
    Check("prediction-layers", Severity.NOTE, _prediction_layers, "no runtime loads them"),
)  # fmt: skip
# Where the packing is known, all names are.
NAMES = (
    Check("tensor-unknown", Severity.WARNING, _unknown, "a runtime may refuse names it does not know; leave them out"),
)  # fmt: skip

"""A checkpoint's tensors matched against the architecture's table: everything expected is there, nothing is extra."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from quantkit.checkpoint.header import TensorEntry
from quantkit.checkpoint.index import Checkpoint
from quantkit.errors import BadInput
from quantkit.model import minimax_m2
from quantkit.model.config import hparams_from_config, weight_block
from quantkit.model.spec import HParams, Kind, Model, ModelTensor, Role

FP8 = "F8_E4M3"


def build_model(checkpoint: Checkpoint) -> Model:
    """Return the model that `checkpoint` holds, in GGUF file order.

    Raises BadInput naming file and tensor for a missing tensor, a wrong shape or dtype, a missing or wrongly shaped
    block scale, and for any tensor that the architecture does not know. Multi-token-prediction layers, which no
    runtime loads, are the one kind that is left aside; they are listed in `Model.ignored`.
    """
    config_path = checkpoint.folder / "config.json"
    hparams = hparams_from_config(checkpoint.config, config_path)
    block = weight_block(checkpoint.config, config_path)
    tensors = tuple(_model_tensor(checkpoint, role, layer, hparams, block) for role, layer in role_places(hparams))
    used = {name for tensor in tensors for name in (*tensor.sources, *tensor.scales)}
    extra = [name for name in checkpoint.tensors if name not in used]
    ignored = tuple(name for name in extra if _is_prediction_layer(name, checkpoint, hparams))
    for name in extra:
        if name not in ignored:
            entry = checkpoint.tensors[name]
            raise BadInput(f"{entry.path}: tensor {name} is not known to {minimax_m2.ARCHITECTURE}; nothing is dropped")
    return Model(minimax_m2.GGUF_ARCHITECTURE, hparams, tensors, block, ignored)


def role_places(hparams: HParams) -> Iterator[tuple[Role, int | None]]:
    """Every role with its layer, as a token meets them: a source read in this order completes output after output."""
    for role in minimax_m2.FIRST_ROLES:
        yield role, None
    for layer in range(hparams.n_layers):
        for role in minimax_m2.LAYER_ROLES:
            yield role, layer
    for role in minimax_m2.LAST_ROLES:
        yield role, None


def _model_tensor(
    checkpoint: Checkpoint, role: Role, layer: int | None, hparams: HParams, block: tuple[int, int]
) -> ModelTensor:
    shape = tuple(minimax_m2.DIMENSIONS[symbol](hparams) for symbol in role.shape)
    stacked = role.kind is Kind.EXPERT
    sources = tuple(
        role.source.format(layer=layer, expert=expert) for expert in range(hparams.n_experts if stacked else 1)
    )
    scales = tuple(_check_source(checkpoint, role, name, shape, block) for name in sources)
    full_shape = (hparams.n_experts, *shape) if stacked else shape
    return ModelTensor(role.gguf.format(layer=layer), role, layer, full_shape, sources, scales)


def _check_source(
    checkpoint: Checkpoint, role: Role, name: str, shape: tuple[int, ...], block: tuple[int, int]
) -> str | None:
    """Check one source tensor; return its scale's name, or None when it is not FP8."""
    entry = _find(checkpoint, name, "download the checkpoint again")
    _check(entry, shape, role.dtypes)
    if entry.dtype != FP8:
        return None
    scale = name + minimax_m2.SCALE_SUFFIX
    scale_entry = _find(checkpoint, scale, f"{name} is FP8 and cannot be read without its block scales")
    blocks = tuple(math.ceil(size / step) for size, step in zip(shape, block, strict=True))
    _check(scale_entry, blocks, minimax_m2.SCALE_DTYPES)
    return scale


def _find(checkpoint: Checkpoint, name: str, remedy: str) -> TensorEntry:
    if name not in checkpoint.tensors:
        raise BadInput(f"{checkpoint.folder}: tensor {name} is missing; {remedy}")
    return checkpoint.tensors[name]


def _check(entry: TensorEntry, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    if entry.shape != shape:
        raise BadInput(f"{entry.path}: tensor {entry.name} has shape {list(entry.shape)}, expected {list(shape)}")
    if entry.dtype not in dtypes:
        raise BadInput(f"{entry.path}: tensor {entry.name} is {entry.dtype}, expected {' or '.join(dtypes)}")


def _is_prediction_layer(name: str, checkpoint: Checkpoint, hparams: HParams) -> bool:
    match = re.match(r"model\.layers\.(\d+)\.", name)
    extra = checkpoint.config.get("num_mtp_modules") if checkpoint.config.get("use_mtp") else 0
    if not isinstance(extra, int):
        return False
    return match is not None and hparams.n_layers <= int(match[1]) < hparams.n_layers + extra

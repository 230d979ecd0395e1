"""How many GPUs can share a checkpoint, and how: tensor parallelism, or expert parallelism beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantkit.checkpoint.index import read_json
from quantkit.errors import BadInput
from quantkit.formats import compressed_tensors
from quantkit.formats.scheme import Attention
from quantkit.model.config import hparams_from_config
from quantkit.model.spec import HParams
from quantkit.quantize.integers import WHOLE_ROW, IntegerGrid
from quantkit.run.int4.settings import Int4Settings, Method, check_against_model


@dataclass(frozen=True)
class Parallel:
    """`gpus` share every matrix; with `experts` whole experts are shared out instead of cut."""

    gpus: int
    experts: bool = False


def unit_of(config: dict[str, object]) -> int | None:
    """Columns that must stay on one GPU: FP8's block or the integers' group; None where every column is its own."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict):
        return None
    block = quantization.get("weight_block_size")
    if isinstance(block, list) and block:
        return int(block[-1])
    sizes = [quantization.get("group_size")]
    for group in (quantization.get("config_groups") or {}).values():
        weights = group.get("weights") or {}
        sizes += [weights.get("group_size"), *(weights.get("block_structure") or [])[-1:]]
    positive = [size for size in sizes if isinstance(size, int) and size > 0]
    return max(positive, default=None)


def dimensions(model: Path) -> tuple[HParams, int | None]:
    """Return the hyperparameters and the unit of the checkpoint in the folder `model`, out of its config.json."""
    path = model / "config.json"
    config = read_json(path, "a checkpoint folder needs its config.json")
    return hparams_from_config(config, path), unit_of(config)


def choose_parallel(model: Path, gpus: int) -> Parallel:
    """Return how `gpus` GPUs serve the checkpoint in the folder `model`.

    Experts are cut where the checkpoint's groups or blocks allow it, else shared out. Raises BadInput naming what does
    not divide, and numbers that do.
    """
    hparams, unit = dimensions(model)
    found = _parallel(hparams, unit, gpus)
    if found is not None:
        return found
    raise BadInput(
        f"--gpus {gpus}: {hparams.n_heads} heads, {hparams.n_kv_heads} key-value heads and {hparams.n_experts} experts "
        f"cannot be shared by {gpus}; give one of {', '.join(map(str, legal_counts(hparams, unit)))}"
    )


def legal_counts(hparams: HParams, unit: int | None) -> list[int]:
    """Numbers of GPUs that can share the model, ascending, in one way or the other."""
    return [count for count in range(1, hparams.n_heads + 1) if _parallel(hparams, unit, count) is not None]


def most_gpus(model: Path, visible: int) -> Parallel:
    """Return how to serve on as many of the `visible` GPUs as can share the checkpoint."""
    for gpus in range(visible, 1, -1):
        try:
            return choose_parallel(model, gpus)
        except BadInput:
            continue
    return choose_parallel(model, 1)


def _parallel(hparams: HParams, unit: int | None, gpus: int) -> Parallel | None:
    if _divides(hparams, unit if unit is not None else WHOLE_ROW, gpus):
        return Parallel(gpus)
    if _divides(hparams, WHOLE_ROW, gpus) and hparams.n_experts % gpus == 0:
        return Parallel(gpus, experts=True)
    return None


def _divides(hparams: HParams, unit: int, gpus: int) -> bool:
    """Whether tensor parallelism leaves heads and units whole, by the rule that quantizing with --tp goes by."""
    grid = IntegerGrid(4, unit, symmetric=True)
    settings = Int4Settings(Method.RTN, compressed_tensors.NAME, grid, attention=Attention.BF16)
    try:
        check_against_model(settings, hparams, gpus, group_size_given=True)
    except BadInput:
        return False
    return True

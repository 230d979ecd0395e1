"""An importance matrix in one run: whether it belongs to the model, which tensors it guides, what it lacks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantkit.arrays import Float32
from quantkit.errors import BadInput
from quantkit.formats.gguf.metadata import Pair, array, string, uint32
from quantkit.formats.imatrix.read import Imatrix, read_imatrix
from quantkit.model.spec import Model
from quantkit.quantize.rows import UNWEIGHTED_TYPES
from quantkit.recipe.mixes import Mix, needs_importance


@dataclass(frozen=True)
class MissingExperts:
    """A tensor of `experts` experts of which `missing` saw no token; they use the mean of the others."""

    tensor: str
    missing: int
    experts: int

    def __str__(self) -> str:
        return f"{self.tensor}: {self.missing} of {self.experts}"


@dataclass(frozen=True)
class Importance:
    """An importance matrix that fits the model.

    `guided` are the tensors whose type has a search and for which there is data; `without` those with a search and no
    data; `missing` lists what the guided ones lack.
    """

    imatrix: Imatrix = field(repr=False)
    sha256: str
    guided: tuple[str, ...]
    without: tuple[str, ...]
    missing: tuple[MissingExperts, ...]

    def weights(self, tensor: str, matrix: int) -> Float32 | None:
        """Importance of the columns of one expert, float32 [K]; None where there is no data."""
        return self.imatrix.weights(tensor, matrix)


def importance_for(imatrix: Path | None, model: Model, mix: Mix, types: Mapping[str, str]) -> Importance | None:
    """Open `imatrix` and check that it fits `model` and has what `types` cannot do without.

    Every value is read once. Raises BadInput naming the file and the entry when it belongs to another model or is
    damaged, and naming the tensor when importance is needed and missing.
    """
    if imatrix is None:
        if mix.needs_imatrix:
            raise BadInput(
                f"type {mix.name.lower()} needs an importance matrix; give one of this model with --imatrix FILE"
            )
        _refuse_needy(mix, types, list(types), "give one of this model with --imatrix FILE, or")
        return None
    fitted = _fit(read_imatrix(imatrix), model)
    fitted.check_values()
    searched = [name for name, type_name in types.items() if type_name not in UNWEIGHTED_TYPES]
    guided = [name for name in searched if fitted.weights(name, 0) is not None]
    without = [name for name in searched if name not in set(guided)]
    _refuse_needy(mix, types, without, f"{imatrix} has no data for it;")
    missing = [
        MissingExperts(name, len(fitted.missing(name)), fitted.entries[name].matrices)
        for name in guided
        if fitted.missing(name)
    ]
    return Importance(fitted, fitted.sha256(), tuple(guided), tuple(without), tuple(missing))


def check_calibrated(mix: Mix, types: Mapping[str, str]) -> None:
    """Raise BadInput when a tensor that nothing measured enters needs importance: calibration sees all others."""
    _refuse_needy(mix, types, ["token_embd.weight"], "calibration has no data for it;")


def importance_pairs(importance: Importance | None) -> list[Pair]:
    """Return the keys that llama-quantize writes about an importance matrix, its hash, and what it lacked."""
    if importance is None:
        return []
    imatrix = importance.imatrix
    pairs = [string("quantize.imatrix.file", os.fsencode(imatrix.path.name).decode(errors="replace"))]
    if imatrix.datasets:
        pairs.append(string("quantize.imatrix.dataset", imatrix.datasets[0]))
    pairs.append(uint32("quantize.imatrix.entries_count", len(imatrix.entries)))
    if imatrix.chunk_count:
        pairs.append(uint32("quantize.imatrix.chunks_count", imatrix.chunk_count))
    return [
        *pairs,
        string("quantkit.imatrix.sha256", importance.sha256),
        array("quantkit.imatrix.tensors_without", importance.without),
        array("quantkit.imatrix.missing_experts", [str(missing) for missing in importance.missing]),
    ]


def _refuse_needy(mix: Mix, types: Mapping[str, str], tensors: Sequence[str], remedy: str) -> None:
    for name in tensors:
        if needs_importance(mix, name, types[name]):
            raise BadInput(
                f"tensor {name}: {types[name]} needs an importance matrix; {remedy} choose another type for it with "
                f"--tensor-type '{name.replace('.', '[.]')}=Q4_K'"
            )


def _fit(imatrix: Imatrix, model: Model) -> Imatrix:
    """Check names and shapes of the entries against the model's; cut rows that hold all experts of a tensor."""
    tensors = {tensor.gguf: tensor for tensor in model.tensors}
    joined: dict[str, int] = {}
    for entry in imatrix.entries.values():
        tensor = tensors.get(entry.name)
        if tensor is None:
            raise BadInput(
                f"{imatrix.path}: entry {entry.name} is no tensor of this model, which has {model.hparams.n_layers} "
                "layers; give an importance matrix that was made with this model"
            )
        matrices, columns = tensor.matrices, tensor.shape[-1]
        if matrices > 1 and (entry.matrices, entry.columns) == (1, matrices * columns):
            joined[entry.name] = matrices
        elif (entry.matrices, entry.columns) != (matrices, columns):
            raise BadInput(
                f"{imatrix.path}: entry {entry.name} is for {entry.matrices} x {entry.columns} columns, the model's "
                f"tensor has {matrices} x {columns}; give an importance matrix that was made with this model"
            )
    return imatrix.stacked(joined)

"""The tensors of a MiniMax-M2 GGUF, split or not, whoever made it; experts are read out of their stack one by one."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch

from quantkit.arrays import Bytes, Float32
from quantkit.checkpoint.dequant import to_bfloat16
from quantkit.errors import BadInput
from quantkit.formats.gguf.read import GGUFContents, StoredTensor, read_gguf
from quantkit.formats.gguf.types import block_size, row_bytes
from quantkit.forward.rows import as_numpy
from quantkit.forward.stored import Place, role_shape
from quantkit.model import minimax_m2
from quantkit.model.gguf_metadata import SIGMOID_GATING
from quantkit.model.spec import HParams, Kind
from quantkit.model.tensors import role_places
from quantkit.quantize.ggml_blocks import can_dequantize, dequantize

# Hyperparameter: its key behind the architecture's name. The vocabulary's size is that of the embeddings.
INTEGER_KEYS = {
    "n_layers": "block_count",
    "hidden": "embedding_length",
    "expert_width": "expert_feed_forward_length",
    "n_experts": "expert_count",
    "n_experts_used": "expert_used_count",
    "n_heads": "attention.head_count",
    "n_kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rotary_dim": "rope.dimension_count",
    "context": "context_length",
}
FLOAT_KEYS = {"rope_theta": "rope.freq_base", "norm_eps": "attention.layer_norm_rms_epsilon"}
# Keys that would make it another model, and the values that do not; absent means the first.
FIXED_KEYS = {
    "expert_gating_func": (SIGMOID_GATING,),
    "rope.scaling.type": ("none",),
    "expert_shared_count": (0,),
    "expert_weights_scale": (1.0, 0.0),
}
MAX_LAYERS = 10_000  # more is damage, not a model
# Weights in float32 at once while a matrix becomes bfloat16: 4 MB.
PIECE_WEIGHTS = 2**20


@dataclass(frozen=True)
class _Place:
    """A matrix or a stack of them: in which part, from which byte on, of which type, and its shape, rows last."""

    part: int
    offset: int
    type: str
    shape: tuple[int, ...]

    @property
    def matrix_rows(self) -> int:
        """Rows of one matrix; a vector is one row."""
        return self.shape[-2] if len(self.shape) > 1 else 1

    @property
    def row_bytes(self) -> int:
        return row_bytes(self.type, self.shape[-1])


class GGUFTensors:
    """Reads the tensors of the GGUF at `path`, any of its parts."""

    def __init__(self, path: Path) -> None:
        """Raises BadInput for another architecture, and for tensors that are missing, unknown or of another shape."""
        contents = read_gguf(path)
        self._path = path
        self._parts = contents.parts
        self._hparams = hparams_from_keys(contents)
        self._places = _places(contents, self._hparams)
        self._files = [os.open(part, os.O_RDONLY) for part in contents.parts]

    @property
    def path(self) -> Path:
        return self._path

    @property
    def hparams(self) -> HParams:
        return self._hparams

    def fill(self, role: str, layer: int, number: int, out: torch.Tensor) -> None:
        """Write a whole tensor into `out`. What is not finite stays so. Raises BadInput where a part ends early."""
        place = self._places[role, layer]
        target = out.view(-1, out.shape[-1])
        step = max(PIECE_WEIGHTS // place.shape[-1], 1)
        for first in range(0, len(target), step):
            piece = target[first : first + step]
            values = self._read(place, number * place.matrix_rows + first, len(piece))
            if piece.dtype is torch.bfloat16:
                to_bfloat16(values, as_numpy(piece))
            else:
                piece.copy_(torch.from_numpy(values))

    def rows(self, role: str, layer: int | None, rows: tuple[int, int] | None = None) -> Float32:
        """Rows of a tensor that is not stacked, float32. Errors as `fill`."""
        place = self._places[role, layer]
        first, last = rows if rows is not None else (0, place.matrix_rows)
        values = self._read(place, first, last - first)
        return values if len(place.shape) > 1 else values[0]

    def will_need(self, role: str, layer: int, number: int) -> None:
        """The rows of one matrix."""
        place = self._places[role, layer]
        nbytes = place.matrix_rows * place.row_bytes
        if hasattr(os, "posix_fadvise"):
            offset = place.offset + number * nbytes
            os.posix_fadvise(self._files[place.part], offset, nbytes, os.POSIX_FADV_WILLNEED)

    def expect(self, places: Iterable[Place]) -> None:
        """They are here."""

    def release(self, places: Iterable[Place]) -> None:
        """They stay."""

    def close(self) -> None:
        """Close the parts."""
        while self._files:
            os.close(self._files.pop())

    def _read(self, place: _Place, first: int, count: int) -> Float32:
        """`count` rows from row `first` of the whole stack on, float32 [count, K]."""
        packed = np.empty((count, place.row_bytes), np.uint8)
        self._read_bytes(place, place.offset + first * place.row_bytes, packed.reshape(-1))
        return dequantize(packed, place.type, place.shape[-1])

    def _read_bytes(self, place: _Place, offset: int, into: Bytes) -> None:
        done = 0
        while done < len(into):
            try:
                got = os.preadv(self._files[place.part], [into.data[done:]], offset + done)
            except OSError as error:
                raise BadInput(f"{self._parts[place.part]}: cannot be read ({error.strerror})") from None
            if got == 0:
                raise BadInput(f"{self._parts[place.part]}: the file ends early; download it again")
            done += got


def hparams_from_keys(contents: GGUFContents) -> HParams:
    """The dimensions that the keys give. Raises BadInput naming the file and the key that is missing or not M2's."""
    path, keys = contents.parts[0], contents.keys
    architecture = keys.get("general.architecture")
    if architecture != minimax_m2.GGUF_ARCHITECTURE:
        raise BadInput(
            f"{path}: architecture {architecture!r}; the streamed engine runs {minimax_m2.GGUF_ARCHITECTURE}"
        )
    for key, allowed in FIXED_KEYS.items():
        value = keys.get(f"{architecture}.{key}", allowed[0])
        if value not in allowed:
            raise BadInput(f"{path}: key {architecture}.{key} is {value!r}; {architecture} models have {allowed[0]!r}")

    integers = {name: int(_number(contents, f"{architecture}.{key}", int)) for name, key in INTEGER_KEYS.items()}
    constants = {name: _number(contents, f"{architecture}.{key}", float) for name, key in FLOAT_KEYS.items()}
    # Stored as float32: the shortest number that rounds to it is the one that was meant.
    floats = {name: float(str(np.float32(value))) for name, value in constants.items()}
    if integers["n_layers"] > MAX_LAYERS:
        raise BadInput(f"{path}: key {architecture}.block_count is {integers['n_layers']}; damaged")
    embeddings = next((tensor for tensor in contents.tensors if tensor.name == "token_embd.weight"), None)
    if embeddings is None:
        raise BadInput(f"{path}: tensor token_embd.weight is missing; give the first part of a complete model")
    return HParams(**integers, vocab=embeddings.shape[0], rope_theta=floats["rope_theta"], norm_eps=floats["norm_eps"])


def _number(contents: GGUFContents, key: str, kind: type[int] | type[float]) -> float:
    value = contents.keys.get(key)
    if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value < math.inf:
        raise BadInput(f"{contents.parts[0]}: key {key} is {value!r}; a positive number is needed")
    return value


def _places(contents: GGUFContents, hparams: HParams) -> dict[tuple[str, int | None], _Place]:
    starts = {
        tensor.name: (number, int(tensor.data_offset))
        for number, part in enumerate(contents.parts)
        for tensor in gguf.GGUFReader(part).tensors
    }
    stored = {tensor.name: tensor for tensor in contents.tensors}
    places = {}
    for role, layer in role_places(hparams):
        name = role.gguf.format(layer=layer)
        shape = role_shape(role, hparams)
        shape = (hparams.n_experts, *shape) if role.kind is Kind.EXPERT else shape
        tensor = stored.pop(name, None)
        if tensor is None:
            raise BadInput(f"{contents.parts[0]}: tensor {name} is missing; the file is incomplete or of another make")
        part, offset = starts[name]
        _check(contents.parts[part], tensor, shape)
        places[role.name, layer] = _Place(part, offset, tensor.type, shape)
    for name in stored:
        raise BadInput(f"{contents.parts[starts[name][0]]}: tensor {name} is not known to {minimax_m2.ARCHITECTURE}")
    return places


def _check(path: Path, tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise BadInput(f"{path}: tensor {tensor.name} has shape {list(tensor.shape)}, expected {list(shape)}")
    if not can_dequantize(tensor.type) or shape[-1] % block_size(tensor.type)[0]:
        raise BadInput(f"{path}: tensor {tensor.name} is {tensor.type}, which cannot be turned into numbers here")

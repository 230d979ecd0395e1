"""Tensors of a checkpoint as torch tensors on the compute device, by role, layer and expert."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

import torch

from quantkit.checkpoint.index import Checkpoint
from quantkit.checkpoint.reader import Reader
from quantkit.forward.decoder import AttentionHalf, attention_half
from quantkit.forward.rows import as_numpy
from quantkit.model.spec import Model, ModelTensor


@dataclass(frozen=True)
class Expert:
    """One expert's matrices: `gate_up` [2 W, H] is w1's rows, then w3's; `down` [H, W] is w2."""

    gate_up: torch.Tensor
    down: torch.Tensor


class Weights:
    """Reads a checkpoint's tensors in one dtype, bfloat16 or float32; used by many threads."""

    def __init__(self, checkpoint: Checkpoint, model: Model, dtype: torch.dtype, device: torch.device) -> None:
        self.checkpoint = checkpoint
        self.hparams = model.hparams
        self.dtype = dtype
        self.device = device
        self.reader = Reader(checkpoint, model.block)
        self._scratch = threading.local()
        self._tensors = {(tensor.role.name, tensor.layer): tensor for tensor in model.tensors}

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reader.__exit__(kind, error, trace)

    def tensor(self, role: str, layer: int | None = None) -> ModelTensor:
        """Where the tensor of `role` in `layer` is."""
        return self._tensors[role, layer]

    def attention_half(self, layer: int, replaced: Mapping[str, torch.Tensor] | None = None) -> AttentionHalf:
        """The layer's modules before the experts, with their weights, or those `replaced` by role."""

        def fetch(role: str, dtype: torch.dtype) -> torch.Tensor:
            if replaced is not None and role in replaced:
                return replaced[role].to(self.device, dtype)
            source = self.tensor(role, layer)
            out = torch.empty(source.source_shape, dtype=dtype)
            self._read(source, 0, out)
            return out.to(self.device)

        return attention_half(self.hparams, fetch, self.dtype)

    def expert(self, layer: int, expert: int) -> Expert:
        """Read and dequantize one expert's three matrices. On the CPU they last until the thread's next call."""
        h = self.hparams
        if not hasattr(self._scratch, "gate_up"):
            # Kept per thread: fresh pages for every expert cost as much as dequantizing it.
            self._scratch.gate_up = torch.empty(2 * h.expert_width, h.hidden, dtype=self.dtype)
            self._scratch.down = torch.empty(h.hidden, h.expert_width, dtype=self.dtype)
        read = self._read_expert(layer, expert, Expert(self._scratch.gate_up, self._scratch.down))
        return Expert(read.gate_up.to(self.device), read.down.to(self.device))

    def exact_expert(self, layer: int, expert: int) -> Expert:
        """One expert's matrices in float32, as stored, in main memory: what a quantizer starts from."""
        h = self.hparams
        into = Expert(torch.empty(2 * h.expert_width, h.hidden), torch.empty(h.hidden, h.expert_width))
        return self._read_expert(layer, expert, into)

    def _read_expert(self, layer: int, expert: int, into: Expert) -> Expert:
        """Fill the matrices of `into`, which are in main memory."""
        width = self.hparams.expert_width
        self._read(self.tensor("ffn_gate_exps", layer), expert, into.gate_up[:width])
        self._read(self.tensor("ffn_up_exps", layer), expert, into.gate_up[width:])
        self._read(self.tensor("ffn_down_exps", layer), expert, into.down)
        return into

    def announce(self, layer: int, expert: int) -> None:
        """Let the system read an expert that will be needed soon."""
        for role in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
            entry = self.checkpoint.tensors[self.tensor(role, layer).sources[expert]]
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self.reader.descriptor(entry.path), entry.offset, entry.nbytes, os.POSIX_FADV_WILLNEED)

    def matrix_rows(self, role: str, rows: tuple[int, int]) -> torch.Tensor:
        """Rows [first, last) of the embedding or the output matrix, float32, on the compute device."""
        source = self.tensor(role)
        return torch.from_numpy(self.reader.read_rows(source.sources[0], source.scales[0], rows)).to(self.device)

    def values(self, role: str, layer: int | None = None) -> torch.Tensor:
        """A small tensor, a norm or a router, float32."""
        source = self.tensor(role, layer)
        return torch.from_numpy(self.reader.read_rows(source.sources[0], source.scales[0])).to(self.device)

    def _read(self, source: ModelTensor, number: int, out: torch.Tensor) -> None:
        name, scale = source.sources[number], source.scales[number]
        if out.dtype is torch.bfloat16:
            # Vectors as one row.
            self.reader.read_bfloat16(name, scale, as_numpy(out))
        else:
            out.copy_(torch.from_numpy(self.reader.read_rows(name, scale)))

"""A model's weights as torch tensors on the compute device, by role, layer and expert."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from quantkit.checkpoint.index import Checkpoint
from quantkit.forward.decoder import AttentionHalf, attention_half
from quantkit.forward.stored import EXPERT_ROLES, ROLES, StoredTensors, role_shape
from quantkit.forward.stored_checkpoint import CheckpointTensors
from quantkit.model.spec import Model


@dataclass(frozen=True)
class Expert:
    """One expert's matrices: `gate_up` [2 W, H] is w1's rows, then w3's; `down` [H, W] is w2."""

    gate_up: torch.Tensor
    down: torch.Tensor


class ModelWeights:
    """Reads a model's tensors in one dtype, bfloat16 or float32; used by many threads."""

    def __init__(self, stored: StoredTensors, dtype: torch.dtype, device: torch.device) -> None:
        """`stored` is closed with this."""
        self.stored = stored
        self.hparams = stored.hparams
        self.dtype = dtype
        self.device = device
        self._scratch = threading.local()

    def __enter__(self) -> ModelWeights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stored.close()

    @property
    def path(self) -> Path:
        """The file or folder that holds them."""
        return self.stored.path

    def attention_half(self, layer: int, replaced: Mapping[str, torch.Tensor] | None = None) -> AttentionHalf:
        """The layer's modules before the experts, with their weights, or those `replaced` by role."""

        def fetch(role: str, dtype: torch.dtype) -> torch.Tensor:
            if replaced is not None and role in replaced:
                return replaced[role].to(self.device, dtype)
            out = torch.empty(role_shape(ROLES[role], self.hparams), dtype=dtype)
            self.stored.fill(role, layer, 0, out)
            return out.to(self.device)

        return attention_half(self.hparams, fetch, self.dtype)

    def expert(self, layer: int, expert: int) -> Expert:
        """Read and dequantize one expert's three matrices. On the CPU they last until the thread's next call."""
        h = self.hparams
        if not hasattr(self._scratch, "gate_up"):
            # Kept per thread: fresh pages for every expert cost as much as dequantizing it.
            self._scratch.gate_up = torch.empty(2 * h.expert_width, h.hidden, dtype=self.dtype)
            self._scratch.down = torch.empty(h.hidden, h.expert_width, dtype=self.dtype)
        read = self._fill_expert(layer, expert, Expert(self._scratch.gate_up, self._scratch.down))
        return Expert(read.gate_up.to(self.device), read.down.to(self.device))

    def exact_expert(self, layer: int, expert: int) -> Expert:
        """One expert's matrices in float32, as stored, in main memory: what a quantizer starts from."""
        h = self.hparams
        into = Expert(torch.empty(2 * h.expert_width, h.hidden), torch.empty(h.hidden, h.expert_width))
        return self._fill_expert(layer, expert, into)

    def _fill_expert(self, layer: int, expert: int, into: Expert) -> Expert:
        """Fill the matrices of `into`, which are in main memory."""
        width = self.hparams.expert_width
        self.stored.fill("ffn_gate_exps", layer, expert, into.gate_up[:width])
        self.stored.fill("ffn_up_exps", layer, expert, into.gate_up[width:])
        self.stored.fill("ffn_down_exps", layer, expert, into.down)
        return into

    def announce(self, layer: int, expert: int) -> None:
        """Let the system read an expert that will be needed soon."""
        for role in EXPERT_ROLES:
            self.stored.will_need(role, layer, expert)

    def matrix_rows(self, role: str, rows: tuple[int, int]) -> torch.Tensor:
        """Rows [first, last) of the embedding or the output matrix, float32, on the compute device."""
        return torch.from_numpy(self.stored.rows(role, None, rows)).to(self.device)

    def values(self, role: str, layer: int | None = None) -> torch.Tensor:
        """A small tensor, a norm or a router, float32."""
        return torch.from_numpy(self.stored.rows(role, layer)).to(self.device)


class Weights(ModelWeights):
    """Those of an FP8 or BF16 checkpoint, which can be quantized: its tensors can be named and read as stored."""

    def __init__(self, checkpoint: Checkpoint, model: Model, dtype: torch.dtype, device: torch.device) -> None:
        stored = CheckpointTensors(checkpoint, model)
        super().__init__(stored, dtype, device)
        self.checkpoint = checkpoint
        self.reader = stored.reader
        self.tensor = stored.tensor

    def __enter__(self) -> Weights:
        return self

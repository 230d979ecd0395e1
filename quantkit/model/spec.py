"""What an architecture file says: roles of tensors, and a model's tensors with their sources."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How a role may be treated. Only LINEAR and EXPERT weights, and in some GGUF mixes EMBEDDING, are quantized."""

    EMBEDDING = "embedding"
    LINEAR = "attention"
    EXPERT = "expert"
    ROUTER = "router"
    NORM = "norm"


@dataclass(frozen=True)
class Role:
    """One row of an architecture's table.

    `source` and `gguf` are name patterns with `{layer}` and, for experts, `{expert}`; `shape` is written in the
    symbols of the architecture's dimensions, without the expert axis.
    """

    name: str
    kind: Kind
    source: str
    gguf: str
    shape: tuple[str, ...]
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """One tensor of the model as a runtime sees it: experts of a layer are stacked, in id order.

    `shape` is [N, K], [N] or, stacked, [E, N, K]; `sources` has one checkpoint name, or E of them; `scales` the
    matching block-scale names, None where the source is not FP8.
    """

    gguf: str
    role: Role
    layer: int | None
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    scales: tuple[str | None, ...]

    @property
    def source_shape(self) -> tuple[int, ...]:
        """Shape of each source tensor: without the expert axis."""
        return self.shape[1:] if self.role.kind is Kind.EXPERT else self.shape

    @property
    def matrices(self) -> int:
        """How many matrices are stacked: the experts, or 1."""
        return len(self.sources)

    def stored_names(self) -> list[str]:
        """What the checkpoint holds of it, block scales included; expert by expert."""
        pairs = zip(self.sources, self.scales, strict=True)
        return [name for pair in pairs for name in pair if name is not None]


@dataclass(frozen=True)
class Model:
    """A checkpoint seen as a model: its dimensions, tensors in file order, and what was left aside on purpose."""

    architecture: str
    hparams: HParams
    tensors: tuple[ModelTensor, ...]
    block: tuple[int, int]
    ignored: tuple[str, ...]

    def stages(self) -> dict[str, int]:
        """When a token meets each tensor: -1 before the layers, in one of them, behind them (the number of layers)."""
        found, stage = {}, -1
        for tensor in self.tensors:
            if tensor.layer is not None:
                stage = tensor.layer
            elif stage >= 0:
                stage = self.hparams.n_layers
            found[tensor.gguf] = stage
        return found


@dataclass(frozen=True)
class HParams:
    """Dimensions and constants of a mixture-of-experts decoder, as config.json gives them."""

    n_layers: int
    hidden: int
    expert_width: int
    n_experts: int
    n_experts_used: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rotary_dim: int
    vocab: int
    context: int
    rope_theta: float
    norm_eps: float

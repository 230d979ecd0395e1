"""What is known of one quantization: a record that is kept beside it in its repo, and that a card is rendered from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from quantkit.errors import BadInput

FORMAT = "quantkit quantization 1"
GGUF, INT4 = "gguf", "int4"
# How the key of a GGUF that names its quantizers begins where ggml made all types that it can, and how it ends where a
# card computed.
GGML, CUDA = "xllamacpp", ", CUDA"
# Where the record of a quantization lies in its repo.
RECORDS = "quantkit"


@dataclass(frozen=True)
class FileFacts:
    """One weight file: its path, in the repo once it is known, and its bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class RoleFacts:
    """All tensors of one role: number of matrices or vectors by type, weights (scales not counted) and bytes."""

    role: str
    types: dict[str, int]
    weights: int
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        return self.nbytes * 8 / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class SourceFacts:
    """Where the weights came from: a repo, the revision asked for, and the commit that it was.

    `license_sha256` is the hash of the repo's LICENSE where it was seen.
    """

    repo: str
    revision: str | None = None
    commit: str | None = None
    license_sha256: str | None = None


@dataclass(frozen=True)
class CalibrationSource:
    """One file or data set of a calibration set; `share` in percent of its tokens."""

    name: str
    licence: str | None = None
    origin: str | None = None
    sha256: str | None = None
    share: float | None = None


@dataclass(frozen=True)
class CalibrationFacts:
    """The calibration tokens: how many, their hash, and what they were made of."""

    tokens: int | None = None
    tokens_sha256: str | None = None
    corpus: str | None = None
    corpus_sha256: str | None = None
    samples: int | None = None
    sequence_length: int | None = None
    precision: str | None = None
    min_tokens_per_expert: int | None = None
    sources: tuple[CalibrationSource, ...] = ()


@dataclass(frozen=True)
class ImatrixFacts:
    """The importance matrix that guided a GGUF: file name, hash, data set, and what it had no data for."""

    file: str
    sha256: str | None = None
    dataset: str | None = None
    tensors_without: tuple[str, ...] = ()
    missing_experts: tuple[str, ...] = ()


@dataclass(frozen=True)
class OverflowFacts:
    """The last layer's down experts, whose inputs overflow in some of llama.cpp's CUDA kernels."""

    layer: int
    type: str
    safe: bool
    guard: bool
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class GpuFacts:
    """Numbers of GPUs that can share a checkpoint: by cutting matrices, and only by sharing out whole experts."""

    tensor_parallel: tuple[int, ...]
    expert_parallel: tuple[int, ...]


@dataclass(frozen=True)
class Measured:
    """One side of a measurement: what it was and what ran it."""

    name: str
    kind: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    hardware: str | None = None
    command: str | None = None


@dataclass(frozen=True)
class ReportFacts:
    """A report of `quantkit verify`. `metrics` and `intervals` are by dotted name, in the report's own numbers.

    A metric that was not finite is None and listed in `not_finite`.
    """

    verdict: str
    created: str | None
    gate: str | None
    gate_sha256: str | None
    reasons: tuple[str, ...]
    metrics: dict[str, float | None]
    intervals: dict[str, tuple[float, float]]
    reference_metrics: dict[str, float | None]
    not_finite: tuple[str, ...]
    not_measured: tuple[str, ...]
    notes: tuple[str, ...]
    reference: Measured
    quantized: Measured
    texts: dict[str, int] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    command: str | None = None
    weights_fingerprint: str = ""


@dataclass(frozen=True)
class QuantFacts:
    """One quantization.

    `name` tells it from others of the repo (Q4_K_M, or the folder's name), `kind` is "gguf" or "int4", `loads` what
    runtimes call such files, `scheme` and `method` say in words what was made and how. `settings` are what it was
    asked for, `fallbacks` count what went otherwise, `error_to` says how much of another method's output error is left.
    `cache_bytes` is what keys and values of one token take in 16 bits. `command` is None where only `settings` tell it.
    """

    name: str
    kind: str
    model: str
    loads: str
    scheme: str
    method: str
    files: tuple[FileFacts, ...]
    roles: tuple[RoleFacts, ...]
    context: int
    cache_bytes: int
    settings: dict[str, Any] = field(default_factory=dict)
    gpus: GpuFacts | None = None
    overflow: OverflowFacts | None = None
    imatrix: ImatrixFacts | None = None
    calibration: CalibrationFacts | None = None
    coverage: dict[str, float] = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)
    error_to: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    source: SourceFacts | None = None
    source_layout_sha256: str | None = None
    command: str | None = None
    report: ReportFacts | None = None

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
        return sum(file.size for file in self.files)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the tensors, scales and unquantized ones included, per weight of the model."""
        weights = sum(role.weights for role in self.roles)
        return sum(role.nbytes for role in self.roles) * 8 / weights if weights else 0.0

    @property
    def is_measured(self) -> bool:
        return self.report is not None

    @property
    def record_name(self) -> str:
        """Name of the record's file in the folder RECORDS of the repo."""
        return f"{self.name}.json"

    def placed(self, paths: Sequence[str]) -> QuantFacts:
        """The same with the files at these paths of the repo, in the order of `files`."""
        files = [FileFacts(path, file.size) for path, file in zip(paths, self.files, strict=True)]
        return replace(self, files=tuple(files))

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return {"format": FORMAT, **asdict(self)}

    @staticmethod
    def from_json(data: object, where: str = "record") -> QuantFacts:
        """Undo `as_json`. Raises BadInput naming `where` for anything else."""
        from pydantic import TypeAdapter, ValidationError

        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BadInput(f"{where}: not a {FORMAT!r} record; delete it, or publish to another repo")
        try:
            return TypeAdapter(QuantFacts).validate_python({key: data[key] for key in data if key != "format"})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise BadInput(f"{where}: {place}: {first['msg']}; delete it, or publish to another repo") from None

"""The findings of an inspection: every tensor, sums per role and per type, and problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TensorRecord:
    """One stored tensor. `weights` is 0 for what only helps to store others (FP8 block scales)."""

    name: str
    role: str
    type: str
    shape: tuple[int, ...]
    weights: int
    nbytes: int


@dataclass(frozen=True)
class Problem:
    """Something to know before using the file: "error" will not work, "warning" may answer wrongly, "note" is odd."""

    severity: str
    text: str


@dataclass(frozen=True)
class Group:
    """Sums over the tensors of one role or type."""

    tensors: int
    weights: int
    nbytes: int
    types: dict[str, int]

    @property
    def bits_per_weight(self) -> float:
        return self.nbytes * 8 / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class Report:
    """An inspected checkpoint ("checkpoint") or GGUF ("gguf"); `facts` are its dimensions and settings."""

    kind: str
    path: Path
    files: int
    file_bytes: int
    facts: dict[str, Any]
    tensors: tuple[TensorRecord, ...]
    problems: tuple[Problem, ...] = field(default=())

    @property
    def total(self) -> Group:
        return _group(self.tensors)

    def by_role(self) -> dict[str, Group]:
        return _grouped(self.tensors, "role")

    def by_type(self) -> dict[str, Group]:
        return _grouped(self.tensors, "type")

    def as_json(self) -> dict[str, Any]:
        """Everything as one JSON object with integer bytes."""

        def sums(group: Group) -> dict[str, Any]:
            return {
                "tensors": group.tensors,
                "weights": group.weights,
                "bytes": group.nbytes,
                "bits_per_weight": round(group.bits_per_weight, 4),
                "types": group.types,
            }

        return {
            "kind": self.kind,
            "path": str(self.path),
            "files": self.files,
            "file_bytes": self.file_bytes,
            "facts": self.facts,
            "total": sums(self.total),
            "roles": {role: sums(group) for role, group in self.by_role().items()},
            "types": {name: sums(group) for name, group in self.by_type().items()},
            "problems": [{"severity": problem.severity, "text": problem.text} for problem in self.problems],
            "tensors": [
                {
                    "name": tensor.name,
                    "role": tensor.role,
                    "type": tensor.type,
                    "shape": list(tensor.shape),
                    "bytes": tensor.nbytes,
                }
                for tensor in self.tensors
            ],
        }


def _group(tensors: Iterable[TensorRecord]) -> Group:
    rows = list(tensors)
    return Group(
        tensors=len(rows),
        weights=sum(row.weights for row in rows),
        nbytes=sum(row.nbytes for row in rows),
        types=dict(Counter(row.type for row in rows).most_common()),
    )


def _grouped(tensors: tuple[TensorRecord, ...], key: str) -> dict[str, Group]:
    names = dict.fromkeys(getattr(tensor, key) for tensor in tensors)
    return {name: _group(tensor for tensor in tensors if getattr(tensor, key) == name) for name in names}

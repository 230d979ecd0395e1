"""Inspection of a safetensors checkpoint: its tensors by role, and the damage and traps that headers show."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

from quantkit.checkpoint.index import INDEX_NAME, Checkpoint, open_checkpoint, read_json
from quantkit.errors import BadInput
from quantkit.inspect.report import Problem, Report, TensorRecord
from quantkit.model.spec import Model
from quantkit.model.tensors import build_model

# Sidecar -> what goes wrong without it.
SIDECARS = {
    "generation_config.json": "runtimes fall back to a wrong end-of-turn token and never stop",
    "tokenizer.json": "no runtime can encode text, and no GGUF can be written",
    "tokenizer_config.json": "the tokenizer's special tokens are unknown",
}


def inspect_checkpoint(folder: Path) -> Report:
    """Return what the checkpoint in `folder` holds; a model that does not match its architecture is a problem.

    Raises BadInput only when the index or a header cannot be read at all.
    """
    checkpoint = open_checkpoint(folder)
    problems = []
    model = None
    try:
        model = build_model(checkpoint)
    except BadInput as error:
        problems.append(Problem("error", str(error)))
    problems += _sidecar_problems(folder) + _index_notes(checkpoint)
    if model is not None and model.ignored:
        text = f"{len(model.ignored)} tensors of multi-token-prediction layers, which no runtime loads"
        problems.append(Problem("note", text))
    return Report(
        kind="checkpoint",
        path=folder,
        files=len(checkpoint.shards),
        file_bytes=checkpoint.shard_bytes(),
        facts={"model_type": checkpoint.config.get("model_type"), **(asdict(model.hparams) if model else {})},
        tensors=_records(checkpoint, model),
        problems=tuple(problems),
    )


def _records(checkpoint: Checkpoint, model: Model | None) -> tuple[TensorRecord, ...]:
    """Every stored tensor: the model's in its order, then whatever the model does not know."""
    roles: dict[str, str] = {}
    scales: set[str] = set()
    for tensor in model.tensors if model else ():
        for source, scale in zip(tensor.sources, tensor.scales, strict=True):
            roles[source] = tensor.role.name
            if scale is not None:
                roles[scale] = tensor.role.name
                scales.add(scale)
    entries = (checkpoint.tensors[name] for name in dict.fromkeys([*roles, *checkpoint.tensors]))
    return tuple(
        TensorRecord(
            entry.name,
            roles.get(entry.name, "unknown"),
            entry.dtype,
            entry.shape,
            0 if entry.name in scales else math.prod(entry.shape),
            entry.nbytes,
        )
        for entry in entries
    )


def _sidecar_problems(folder: Path) -> list[Problem]:
    problems = [
        Problem("warning", f"{folder / name}: missing; {effect}")
        for name, effect in SIDECARS.items()
        if not (folder / name).is_file()
    ]
    config = folder / "tokenizer_config.json"
    has_template = (folder / "chat_template.jinja").is_file() or (
        config.is_file() and "chat_template" in config.read_text(encoding="utf-8", errors="replace")
    )
    if not has_template:
        problems.append(Problem("warning", f"{folder}: no chat template; tool calls and chats will not work"))
    return problems


def _index_notes(checkpoint: Checkpoint) -> list[Problem]:
    path = checkpoint.folder / INDEX_NAME
    if not path.is_file():
        return []
    metadata = read_json(path, "download the index again").get("metadata")
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    stored = sum(entry.nbytes for entry in checkpoint.tensors.values())
    if stated is None or stated == stored:
        return []
    text = (
        f"{path.name}: metadata.total_size says {stated}, the tensors take {stored} bytes; harmless, "
        "the official index has it too"
    )
    return [Problem("note", text)]

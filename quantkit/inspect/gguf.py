"""Inspection of a GGUF: types per role, and what llama.cpp or its CUDA kernels will trip over."""

from __future__ import annotations

import math
import re
from pathlib import Path

from quantkit.formats.gguf.read import GGUFContents, StoredTensor, read_gguf
from quantkit.inspect.report import Problem, Report, TensorRecord
from quantkit.model import minimax_m2
from quantkit.model.spec import Kind
from quantkit.recipe.overflow import guarded_type

# A number of layers beyond this is damage, not a model.
MAX_LAYERS = 10_000

FLOAT_TYPES = ("F32", "F16", "BF16")
ROLES = {role.name: role for role in (*minimax_m2.HEAD_ROLES, *minimax_m2.LAYER_ROLES)}
# Keys without which a chat does not work, and why.
NEEDED_KEYS = {
    "tokenizer.chat_template": "llama.cpp derives its tool-call parser from the chat template",
    "tokenizer.ggml.eos_token_id": "generation never stops without an end-of-turn token",
    "tokenizer.ggml.tokens": "no text can be encoded without a vocabulary",
}


def inspect_gguf(path: Path) -> Report:
    """Return what the GGUF `path` (any part of a split one) holds. Raises BadInput when it cannot be read."""
    contents = read_gguf(path)
    problems = _problems(contents)
    if path.name.endswith(".partial"):
        text = f"{path.name} is unfinished; repeat the command that was writing it"
        problems.insert(0, Problem("error", text))
    return Report(
        kind="gguf",
        path=path,
        files=len(contents.parts),
        file_bytes=sum(part.stat().st_size for part in contents.parts),
        facts={key: value for key, value in contents.keys.items() if key != "tokenizer.chat_template"},
        tensors=tuple(
            TensorRecord(
                tensor.name, role_of(tensor.name), tensor.type, tensor.shape, math.prod(tensor.shape), tensor.nbytes
            )
            for tensor in contents.tensors
        ),
        problems=tuple(problems),
    )


def role_of(name: str) -> str:
    """Role of a GGUF tensor by its name, "unknown" for names that the architecture does not have."""
    for suffix in (".in_sum2", ".counts", ".weight", ".bias"):  # the first two in an importance matrix
        name = name.removesuffix(suffix)
    stem = re.sub(r"^blk\.\d+\.", "", name)
    return stem if stem in ROLES else "unknown"


def _problems(contents: GGUFContents) -> list[Problem]:
    if contents.keys.get("general.type") == "imatrix":
        return []  # sums and counts: nothing of a model to check
    problems = [
        Problem("warning", f"key {key} is missing; {effect}")
        for key, effect in NEEDED_KEYS.items()
        if key not in contents.keys
    ]
    architecture = contents.keys.get("general.architecture")
    if architecture != minimax_m2.GGUF_ARCHITECTURE:
        text = f"architecture {architecture} is not {minimax_m2.GGUF_ARCHITECTURE}; its tensors were not checked"
        return [*problems, Problem("note", text)]
    layers = contents.keys.get(f"{architecture}.block_count")
    if not isinstance(layers, int) or not 0 < layers <= MAX_LAYERS:
        text = f"key {architecture}.block_count is {layers!r}; its tensors were not checked"
        return [*problems, Problem("error", text)]
    problems += _missing_tensors({tensor.name for tensor in contents.tensors}, layers)
    for tensor in contents.tensors:
        problems += _tensor_problems(tensor, layers)
    return problems


def _missing_tensors(names: set[str], layers: int) -> list[Problem]:
    expected = [role.gguf for role in minimax_m2.HEAD_ROLES]
    expected += [role.gguf.format(layer=layer) for layer in range(layers) for role in minimax_m2.LAYER_ROLES]
    missing = [name for name in expected if name not in names]
    if not missing:
        return []
    return [Problem("error", f"{len(missing)} tensors are missing, first {missing[0]}; llama.cpp refuses the file")]


def _tensor_problems(tensor: StoredTensor, layers: int) -> list[Problem]:
    role = ROLES.get(role_of(tensor.name))
    if role is None:
        return [Problem("warning", f"tensor {tensor.name} is not known to this architecture")]
    if role.kind in (Kind.ROUTER, Kind.NORM) and tensor.type not in FLOAT_TYPES:
        return [Problem("error", f"tensor {tensor.name} is {tensor.type}; routers and norms must stay in float")]
    safe = guarded_type(tensor.name, tensor.type, layers)
    if safe != tensor.type:
        text = (
            f"tensor {tensor.name} is {tensor.type}: llama.cpp's CUDA kernels for it overflow on M2.7's last layer and "
            f"prompts end in NaN; {safe} is safe there"
        )
        return [Problem("warning", text)]
    return []

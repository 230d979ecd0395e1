"""Ways to spoil a published checkpoint or GGUF, and what an audit says then."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from harness import Damage
from safetensors import safe_open
from safetensors.torch import load_file, save_file

Models = Callable[[str], Path]

# Name of a sound model: how quantize_int4 is asked for it. Its folder does not hide that it is rounded.
INT4: dict[str, dict[str, Any]] = {
    "awq": {"format_name": "awq", "group_size": 32},
    "gptq": {"format_name": "gptq", "group_size": 32},
    "compressed": {"format_name": "compressed-tensors", "group_size": 32},
    "gptq8": {"format_name": "gptq", "bits": 8, "group_size": -1},
    "fp8-attention": {"format_name": "compressed-tensors", "attention": "fp8"},
    "awq-attention": {"format_name": "awq", "attention": "int4", "group_size": 64},
    "kept": {"format_name": "compressed-tensors", "group_size": 32, "kept_layers": (3,)},
    "kept-awq": {"format_name": "awq", "group_size": 32, "kept_layers": (3,)},
    "kept-gptq": {"format_name": "gptq", "group_size": 32, "kept_layers": (0,)},
}
GGUF: dict[str, dict[str, Any]] = {"q4_k_m": {}, "split": {"split_max_size": 4_000_000}, "q8_0": {}, "bf16": {}}

MOE = "model.layers.0.block_sparse_moe."
ATTENTION = "model.layers.0.self_attn."
LICENCE = """NON-COMMERCIAL LICENSE

A stand-in for the licence of the model that these tests pretend to publish.
"""
CARD = """---
license: other
license_name: minimax-m2.7-non-commercial
license_link: LICENSE
base_model: MiniMaxAI/MiniMax-M2.7
base_model_relation: quantized
---
# A quantized model
"""


@dataclass(frozen=True)
class Fault:
    """One spoilt thing: which sound model it is done to, how, the id that finds it, and what follows from it."""

    id: str
    base: str
    plant: Callable[[Path], object]
    also: frozenset[str] = field(default=frozenset())
    rename: str | None = None

    def __str__(self) -> str:
        return f"{self.base}-{self.id}"


def publish(folder: Path) -> Path:
    """Add card and licence, as a repository has them."""
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text(LICENCE)
    return folder


def reshard(folder: Path, parts: int) -> Path:
    """Spread the tensors of a single-file checkpoint over `parts` files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for part in range(parts):
        shard = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        held = names[part::parts]
        save_file({name: tensors[name] for name in held}, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(held, shard)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


# Safetensors


def config(**values: Any) -> Callable[[Path], object]:
    """Set keys of config.json; `...` removes one."""
    return lambda folder: Damage(folder).edit_json("config.json", **values)


def edit(name: str, **values: Any) -> Callable[[Path], object]:
    return lambda folder: Damage(folder).edit_json(name, **values)


def quantization(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change quantization_config in place."""

    def plant(folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text())
        change(values["quantization_config"])
        path.write_text(json.dumps(values))

    return plant


def without(*names: str) -> Callable[[Path], None]:
    """Remove files."""

    def plant(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return plant


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def tensors(change: Callable[[str, torch.Tensor], dict[str, torch.Tensor] | None]) -> Callable[[Path], None]:
    """Replace every tensor for which `change` gives others (an empty dictionary removes it), and mend the index."""

    def plant(folder: Path) -> None:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        weight_map = {}
        for shard in sorted(set(index["weight_map"].values())):
            kept: dict[str, torch.Tensor] = {}
            for name, value in load_file(folder / shard).items():
                changed = change(name, value)
                kept |= {name: value} if changed is None else changed
            (folder / shard).unlink()
            save_file(kept, folder / shard, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(kept, shard)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index | {"weight_map": weight_map}))

    return plant


def drop(name: str) -> Callable[[Path], None]:
    return tensors(lambda found, _: {} if found == name else None)


def swap(name: str, **parts: torch.Tensor) -> Callable[[Path], None]:
    """Put tensors `module.suffix` in the place of tensor `name`."""
    module = name.rpartition(".")[0]
    made = {f"{module}.{suffix}": value for suffix, value in parts.items()}
    return tensors(lambda found, _: made if found == name else None)


def rename_tensors(old: str, new: str) -> Callable[[Path], None]:
    return tensors(lambda name, value: {name.replace(old, new): value} if old in name else None)


def shard_of(folder: Path, name: str) -> Path:
    return Damage(folder).shard_of(name)


def truncate(name: str) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        path = folder / name
        raw = path.read_bytes()
        path.unlink()  # the copy may be a hard link
        path.write_bytes(raw[:-64])

    return plant


def tensor_twice(folder: Path) -> None:
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    held = load_file(second)
    with safe_open(first, "pt") as library:
        name = next(iter(library.keys()))
        held[name] = library.get_tensor(name)
    second.unlink()
    save_file(held, second, metadata={"format": "pt"})


def unlisted_shard(folder: Path) -> None:
    shutil.copy(sorted(folder.glob("*.safetensors"))[0], folder / "old.safetensors")


def overlapping(folder: Path) -> None:
    """Let the second tensor of a shard begin where the first one does."""
    path = sorted(folder.glob("*.safetensors"))[0]
    raw = path.read_bytes()
    path.unlink()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    first, second = sorted(names, key=lambda name: header[name]["data_offsets"])[:2]
    begin, end = header[second]["data_offsets"]
    header[second]["data_offsets"] = [begin - 4, end - 4]
    assert header[first]["data_offsets"][1] == begin
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


# GGUF


def rewrite(path: Path, keys: dict[str, Any] | None = None, types: dict[str, Any] | None = None, **rename: str) -> None:
    """Write a GGUF again with other keys, types and names of tensors; `...` leaves one out."""
    keys, types = keys or {}, types or {}
    reader = gguf.GGUFReader(path)
    out = path.with_name(path.name + ".new")
    writer = gguf.GGUFWriter(out, str(keys.get("general.architecture", "minimax-m2")))
    for field_ in reader.fields.values():
        name = field_.name
        if name.startswith("GGUF.") or name == "general.architecture" or keys.get(name) is ...:
            continue
        value = keys.get(name, field_.contents())
        kind = gguf.GGUFValueType.STRING if isinstance(value, str) else field_.types[0]
        element = field_.types[-1] if kind is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, kind, sub_type=element)
    for name in keys.keys() - reader.fields.keys() - {"general.architecture"}:
        if isinstance(keys[name], int):
            writer.add_uint32(name, keys[name])
        elif keys[name] is not ...:
            writer.add_string(name, keys[name])
    for tensor in reader.tensors:
        kind = types.get(tensor.name, tensor.tensor_type)
        if kind is ...:
            continue
        data = tensor.data
        if kind != tensor.tensor_type:
            block, size = gguf.GGML_QUANT_SIZES[kind]
            shape = [int(length) for length in reversed(tensor.shape)]
            data = np.zeros([*shape[:-1], shape[-1] // block * size], np.uint8)
        writer.add_tensor(rename.get(tensor.name, tensor.name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(out, path)


def first_gguf(folder: Path) -> Path:
    return sorted(folder.glob("*.gguf"))[0]


def gguf_keys(**values: Any) -> Callable[[Path], None]:
    """Set keys; `__` stands for a dot."""
    keys = {name.replace("__", "."): value for name, value in values.items()}
    return lambda folder: rewrite(first_gguf(folder), keys)


def gguf_types(**values: Any) -> Callable[[Path], None]:
    types = {name.replace("__", "."): value for name, value in values.items()}
    return lambda folder: rewrite(first_gguf(folder), types=types)

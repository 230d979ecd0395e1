"""The streaming layout, opened by the safetensors package, which checks what a file claims."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from quantkit.checkpoint.header import DTYPE_BYTES, read_header
from quantkit.checkpoint.index import open_checkpoint
from quantkit.errors import BadInput
from quantkit.formats.safetensors import Shard, TensorSpec, index_bytes, lay_out

MIXED = [
    TensorSpec("a.weight_packed", "I32", (6, 5)),
    TensorSpec("a.weight_scale", "BF16", (3, 3)),
    TensorSpec("a.weight_shape", "I64", (2,)),
    TensorSpec("ü.weight", "F8_E4M3", (7,)),
    TensorSpec("b.scales", "F16", (1, 9)),
    TensorSpec("b.bias", "F32", (11,)),
    TensorSpec("empty", "BF16", (0, 4)),
    TensorSpec("number", "F32", ()),
]


def write(shards: Sequence[Shard], tensors: Sequence[TensorSpec]) -> dict[str, bytes]:
    """Write the shards as a run would, every tensor at its offset; return the bytes of every tensor."""
    random = np.random.default_rng(1)
    data = {tensor.name: random.bytes(tensor.nbytes) for tensor in tensors}
    for shard in shards:
        content = bytearray(shard.header.ljust(shard.size, b"\xee"))
        for name, offset in shard.offsets.items():
            content[offset : offset + len(data[name])] = data[name]
        shard.path.write_bytes(content)
        assert shard.path.stat().st_size == shard.size
    return data


def same_sizes(count: int, nbytes: int = 1000) -> list[TensorSpec]:
    return [TensorSpec(f"model.layers.{number}.weight", "F8_E4M3", (nbytes,)) for number in range(count)]


def test_the_package_opens_one_file(tmp_path: Path) -> None:
    (shard,) = lay_out(tmp_path, MIXED)
    assert shard.path == tmp_path / "model.safetensors"
    data = write([shard], MIXED)
    with safe_open(shard.path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == {tensor.name for tensor in MIXED}
        for tensor in MIXED:
            stored = file.get_slice(tensor.name)
            assert stored.get_dtype() == tensor.dtype
            assert tuple(stored.get_shape()) == tensor.shape
            read = file.get_tensor(tensor.name).reshape(-1).view(torch.uint8)
            assert read.numpy().tobytes() == data[tensor.name]
    assert {name: entry.offset for name, entry in read_header(shard.path).items()} == shard.offsets


def test_tensors_are_aligned_and_without_holes(tmp_path: Path) -> None:
    (shard,) = lay_out(tmp_path, MIXED)
    assert len(shard.header) % 8 == 0
    end = len(shard.header)
    sizes = {tensor.name: tensor for tensor in MIXED}
    for name, offset in shard.offsets.items():
        assert offset == end
        assert offset % DTYPE_BYTES[sizes[name].dtype] == 0
        end += sizes[name].nbytes
    assert end == shard.size
    # Among tensors of one element size the order given stays.
    assert [name for name in shard.offsets if sizes[name].dtype in ("BF16", "F16")] == [
        "a.weight_scale",
        "b.scales",
        "empty",
    ]


def test_shards_keep_their_limit_and_the_order(tmp_path: Path) -> None:
    tensors = same_sizes(10)
    (tmp_path / "config.json").write_text("{}")
    shards = lay_out(tmp_path, tensors, 4000)
    assert [shard.path.name for shard in shards] == [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)
    ]
    assert all(shard.size <= 4000 for shard in shards)
    assert [name for shard in shards for name in shard.offsets] == [tensor.name for tensor in tensors]
    # Three of them and their header take 3.4 kB: none of the shards but the last has fewer.
    assert [len(shard.offsets) for shard in shards] == [3, 3, 3, 1]
    write(shards, tensors)
    (tmp_path / "model.safetensors.index.json").write_bytes(index_bytes(shards))
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == {tensor.name for tensor in tensors}
    for shard in shards:
        with safe_open(shard.path, "pt") as file:
            assert set(file.keys()) == set(shard.offsets)


@pytest.mark.parametrize("limit", range(1200, 6000, 97))
def test_no_limit_is_exceeded(tmp_path: Path, limit: int) -> None:
    shards = lay_out(tmp_path, same_sizes(30), limit)
    assert max(shard.size for shard in shards) <= limit
    assert sum(len(shard.offsets) for shard in shards) == 30


def test_index_has_the_true_total(tmp_path: Path) -> None:
    shards = lay_out(tmp_path, MIXED[::-1] + same_sizes(5), 1500)
    index = json.loads(index_bytes(shards))
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in MIXED) + 5000
    assert list(index["weight_map"]) == sorted(index["weight_map"])
    assert index["weight_map"] == {name: shard.path.name for shard in shards for name in shard.offsets}


def test_a_tensor_larger_than_a_file_is_refused(tmp_path: Path) -> None:
    tensors = [*same_sizes(2, 10), TensorSpec("big.weight", "F32", (1000,))]
    with pytest.raises(BadInput, match=r"tensor big\.weight: its 4000 bytes .* file of 4000 bytes; allow") as refused:
        lay_out(tmp_path, tensors, 4000)
    enough = int(str(refused.value).split()[-1])
    assert max(shard.size for shard in lay_out(tmp_path, tensors, enough)) <= enough


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same name"):
        lay_out(tmp_path, [*MIXED, MIXED[0]])

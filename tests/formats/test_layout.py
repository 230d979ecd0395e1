"""Header and offsets, read back by the gguf package; llama.cpp's split names and keys."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from quantkit.errors import BadInput
from quantkit.formats.gguf.layout import Part, TensorSpec, lay_out
from quantkit.formats.gguf.metadata import array, boolean, float32, string, uint32
from quantkit.formats.gguf.read import read_gguf

PAIRS = [
    string("general.name", "müller"),
    uint32("test.number", 7),
    float32("test.real", 0.5),
    boolean("test.flag", True),
    array("test.texts", ["a", "", "ü"]),
    array("test.numbers", [1, 2, 3]),
    array("test.empty", []),
]
TENSORS = [
    TensorSpec("a.weight", "Q4_K", (3, 256)),
    TensorSpec("b.weight", "F32", (5,)),
    TensorSpec("c.weight", "Q8_0", (4, 3, 64)),
    TensorSpec("d.weight", "BF16", (7, 96)),
]


def write(parts: list[Part], tensors: list[TensorSpec]) -> dict[str, bytes]:
    """Write the parts with recognisable data; return the bytes of every tensor."""
    data = {tensor.name: bytes((ord(tensor.name[0]) + i) % 256 for i in range(tensor.nbytes)) for tensor in tensors}
    for part in parts:
        content = bytearray(part.header.ljust(part.size, b"\0"))
        for name, offset in part.offsets.items():
            content[offset : offset + len(data[name])] = data[name]
        part.path.write_bytes(content)
    return data


def test_gguf_package_reads_back_keys_and_tensors(tmp_path: Path) -> None:
    (part,) = lay_out(tmp_path / "m.gguf", "test", PAIRS, TENSORS, 10**9)
    data = write([part], TENSORS)
    reader = gguf.GGUFReader(part.path)
    assert part.path == tmp_path / "m.gguf"
    assert reader.get_field("general.architecture").contents() == "test"
    assert reader.get_field("general.name").contents() == "müller"
    assert reader.get_field("test.texts").contents() == ["a", "", "ü"]
    assert reader.get_field("test.numbers").contents() == [1, 2, 3]
    assert reader.get_field("test.empty") is None
    assert [tensor.name for tensor in reader.tensors] == [spec.name for spec in TENSORS]
    for tensor, spec in zip(reader.tensors, TENSORS, strict=True):
        assert tensor.tensor_type.name == spec.type
        assert tuple(tensor.shape) == spec.shape[::-1]
        assert np.ascontiguousarray(tensor.data).tobytes() == data[spec.name]
        assert tensor.data_offset % 32 == 0


def test_parts_stay_within_the_limit_and_carry_the_split_keys(tmp_path: Path) -> None:
    limit = 1700
    parts = lay_out(tmp_path / "m.gguf", "test", PAIRS, TENSORS, limit)
    assert len(parts) > 1
    write(parts, TENSORS)
    assert [part.path.name for part in parts] == [
        f"m-{number:05d}-of-{len(parts):05d}.gguf" for number in range(1, len(parts) + 1)
    ]
    assert all(part.path.stat().st_size <= limit for part in parts)
    for index, part in enumerate(parts):
        reader = gguf.GGUFReader(part.path)
        assert reader.get_field("split.no").contents() == index
        assert reader.get_field("split.no").types == [gguf.GGUFValueType.UINT16]
        assert reader.get_field("split.count").contents() == len(parts)
        assert reader.get_field("split.tensors.count").contents() == len(TENSORS)
        assert reader.get_field("split.tensors.count").types == [gguf.GGUFValueType.INT32]
        assert (reader.get_field("general.name") is not None) == (index == 0)
    assert [tensor.name for tensor in read_gguf(parts[1].path).tensors] == [spec.name for spec in TENSORS]


def test_a_tensor_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"tensor c\.weight.*--split-max-size 700"):
        lay_out(tmp_path / "m.gguf", "test", [], TENSORS, 700)

"""GGUF headers out of ranges, beside the gguf package's reader of whole files."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from planting import Models, rewrite

from quantkit.audit.gguf_header import FIRST_READ, GGUFHeader, read_gguf_header
from quantkit.errors import BadInput


class Ranges:
    """A file that counts what is read of it, and nothing twice."""

    def __init__(self, path: Path) -> None:
        self.raw = path.read_bytes()
        self.end = 0

    def __call__(self, offset: int, length: int) -> bytes:
        assert offset == self.end
        self.end += length
        return self.raw[offset : offset + length]


def header(path: Path) -> tuple[GGUFHeader, int]:
    ranges = Ranges(path)
    return read_gguf_header(path.name, len(ranges.raw), ranges), ranges.end


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.gguf"))


@pytest.mark.parametrize("name", ["q4_k_m", "split"])
def test_keys_and_tensors_are_those_of_the_gguf_package(sound: Models, name: str) -> None:
    for path in files(sound(name)):
        found, end = header(path)
        reader = gguf.GGUFReader(path)
        fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        assert found.keys == {key: field.contents() for key, field in fields.items()}
        assert [(one.name, one.type, list(one.shape), one.offset, one.nbytes) for one in found.tensors] == [
            (
                one.name,
                one.tensor_type.name,
                [int(n) for n in reversed(one.shape)],
                int(one.data_offset),
                int(one.n_bytes),
            )
            for one in reader.tensors
        ]
        assert found.problems == ()
        assert end < max(4 * int(reader.data_offset), FIRST_READ + 1)


def test_every_kind_of_value(tmp_path: Path) -> None:
    path = tmp_path / "kinds.gguf"
    writer = gguf.GGUFWriter(path, "kinds")
    values: dict[str, tuple[str, Any]] = {
        "a": ("UINT8", 255),
        "b": ("INT8", -128),
        "c": ("UINT16", 65535),
        "d": ("INT16", -5),
        "e": ("UINT32", 2**32 - 1),
        "f": ("INT32", -1),
        "g": ("FLOAT32", 0.5),
        "h": ("BOOL", True),
        "i": ("STRING", "ä€"),
        "j": ("UINT64", 2**63),
        "k": ("INT64", -(2**62)),
        "l": ("FLOAT64", 0.1),
    }
    for key, (kind, value) in values.items():
        writer.add_key_value(key, value, gguf.GGUFValueType[kind])
    writer.add_array("strings", ["", "x", "yz"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_custom_alignment(64)
    writer.add_tensor("t", np.zeros((3, 5), np.float32))
    writer.add_tensor("u", np.zeros((2, 2, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found, _ = header(path)
    reader = gguf.GGUFReader(path)
    assert {key: found.keys[key] for key in values} == {key: value for key, (_, value) in values.items()}
    assert (found.keys["strings"], found.keys["numbers"]) == (["", "x", "yz"], [1, 2, 3])
    assert [(one.name, one.offset, one.shape) for one in found.tensors] == [
        (one.name, int(one.data_offset), tuple(int(n) for n in reversed(one.shape))) for one in reader.tensors
    ]


def test_damage_is_named(sound: Models, tmp_path: Path) -> None:
    (source,) = files(sound("q4_k_m"))
    raw = source.read_bytes()
    for cut in (0, 3, 8, 23, 24, 100, 5_000, 60_000):
        with pytest.raises(BadInput, match=r"short\.gguf"):
            read_gguf_header("short.gguf", cut, lambda offset, length, cut=cut: raw[:cut][offset : offset + length])
    cut = len(raw) - 1
    found = read_gguf_header("x.gguf", cut, lambda offset, length: raw[offset : min(offset + length, cut)])
    assert any("ends at byte" in problem for problem in found.problems)


def test_flipped_bytes_never_escape_as_something_else(sound: Models) -> None:
    (source,) = files(sound("q4_k_m"))
    raw = source.read_bytes()
    places = np.random.default_rng(3).integers(0, 200_000, 150)
    said = []
    for place in [*range(0, 24), *places]:
        spoilt = bytearray(raw)
        spoilt[place] ^= 0xFF
        data = bytes(spoilt)
        try:
            read_gguf_header("x.gguf", len(data), lambda offset, length, data=data: data[offset : offset + length])
        except BadInput as error:
            said.append(str(error))
    assert said
    assert all(text.startswith("x.gguf: ") and "\n" not in text for text in said)


def test_a_renamed_tensor_shows(sound: Models, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(files(sound("q4_k_m"))[0].read_bytes())
    rewrite(path, **{"output.weight": "other.weight"})
    assert "other.weight" in {tensor.name for tensor in header(path)[0].tensors}

"""The header reader against the safetensors library's own files, and against damage."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from quantkit.checkpoint.header import MAX_HEADER_BYTES, read_header
from quantkit.errors import BadInput

TENSORS = {
    "matrix": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "codes": torch.arange(10, dtype=torch.uint8).view(torch.float8_e4m3fn),
    "half": torch.tensor([[0.5, -2.0]], dtype=torch.float16),
    "brain": torch.linspace(-1, 1, 7).to(torch.bfloat16),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "empty": torch.zeros((0, 5), dtype=torch.int32),
    "flags": torch.tensor([True, False, True]),
    "große Zahl": torch.tensor([2**40], dtype=torch.int64),
}
# The library's names of the dtypes above.
DTYPES = {
    "matrix": "F32",
    "codes": "F8_E4M3",
    "half": "F16",
    "brain": "BF16",
    "scalar": "F64",
    "empty": "I32",
    "flags": "BOOL",
    "große Zahl": "I64",
}

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("header") / "valid.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of a header (anything that JSON takes, or text) and a number of data bytes."""

    def write_file(header: object, data: int = 0, length: int | None = None) -> Path:
        text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
        path = tmp_path / "odd.safetensors"
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))
        return path

    return write_file


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_what_the_library_reads(valid: Path) -> None:
    entries = read_header(valid)
    raw = valid.read_bytes()
    with safe_open(valid, "pt") as library:
        assert set(entries) == set(library.keys())
        for name, found in entries.items():
            tensor = library.get_tensor(name)
            stored = library.get_slice(name)
            assert found.name == name
            assert found.path == valid
            assert list(found.shape) == stored.get_shape()
            assert found.dtype == stored.get_dtype() == DTYPES[name]
            ours = raw[found.offset : found.offset + found.nbytes]
            assert ours == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_metadata_is_not_a_tensor(write: Write) -> None:
    path = write({"__metadata__": {"format": "pt"}, "a": entry()}, 16)
    assert list(read_header(path)) == ["a"]


def test_a_file_without_tensors_is_valid(write: Write) -> None:
    assert read_header(write({})) == {}


@pytest.mark.parametrize("size", [0, 1, 7])
def test_refuses_a_file_shorter_than_the_length_field(tmp_path: Path, size: int) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(bytes(size))
    with pytest.raises(BadInput, match=rf"short\.safetensors: {size} bytes is too short"):
        read_header(path)


@pytest.mark.parametrize("length", [3, MAX_HEADER_BYTES, MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_refuses_a_header_longer_than_the_file(write: Write, length: int) -> None:
    with pytest.raises(BadInput, match=rf"odd\.safetensors: header claims {length} bytes but the file has 10"):
        read_header(write("{}", length=length))


def test_refuses_truncation_at_every_byte(valid: Path, tmp_path: Path) -> None:
    whole = valid.read_bytes()
    path = tmp_path / "cut.safetensors"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(BadInput, match=r"cut\.safetensors"):
            read_header(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"a": ',
        "[1, 2]",
        "null",
        "7",
        "not json",
        "[" * 100_000,
        '{"a": ' + "9" * 5000 + "}",
        '{"a": {"dtype": "F32", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 4]}}',
    ],
    ids=["empty", "open", "cut", "list", "null", "number", "text", "deep", "long number", "long size"],
)
def test_refuses_a_header_that_is_not_a_json_object(write: Write, text: str) -> None:
    with pytest.raises(BadInput, match=r"odd\.safetensors"):
        read_header(write(text))


def test_refuses_a_header_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    text = b'{"\xff\xfe": 1}'
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(BadInput, match=r"odd\.safetensors: safetensors header is not valid JSON"):
        read_header(path)


def test_refuses_a_name_that_occurs_twice(write: Write) -> None:
    tensor = json.dumps(entry())
    with pytest.raises(BadInput, match=r"odd\.safetensors: .* twice"):
        read_header(write(f'{{"a": {tensor}, "a": {tensor}}}', 16))


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        [],
        {},
        entry(dtype=None),
        entry(dtype=["F32"]),
        entry(shape=None),
        entry(shape="22"),
        entry(shape=[2, -2]),
        entry(shape=[2.0, 2]),
        entry(shape=[True, 4]),
        entry(shape={"0": 2}),
        entry(offsets=None),
        entry(offsets=[0]),
        entry(offsets=[0, 8, 16]),
        entry(offsets=[-16, 0]),
        entry(offsets=["0", "16"]),
        entry(offsets="01"),
    ],
)
def test_refuses_an_entry_without_valid_fields(write: Write, value: object) -> None:
    with pytest.raises(BadInput, match=r"odd\.safetensors: tensor a: header entry lacks"):
        read_header(write({"a": value}, 16))


@pytest.mark.parametrize("dtype", ["F4", "f32", "", "C64"])
def test_refuses_an_unknown_dtype(write: Write, dtype: str) -> None:
    with pytest.raises(BadInput, match=rf"odd\.safetensors: tensor a: unknown dtype {dtype};"):
        read_header(write({"a": entry(dtype)}, 16))


@pytest.mark.parametrize("offsets", [(0, 15), (0, 17), (16, 0), (16, 16)])
def test_refuses_offsets_that_disagree_with_the_shape(write: Write, offsets: tuple[int, int]) -> None:
    stored = offsets[1] - offsets[0]
    with pytest.raises(BadInput, match=rf"tensor a: {stored} bytes stored, F32 \[2, 2\] needs 16"):
        read_header(write({"a": entry(offsets=offsets)}, 32))


def test_refuses_a_tensor_that_ends_behind_the_file(write: Write) -> None:
    assert read_header(write({"a": entry()}, 16))["a"].nbytes == 16
    path = write({"a": entry()}, 15)
    with pytest.raises(BadInput, match=rf"tensor a ends at byte {path.stat().st_size + 1} but the file has"):
        read_header(path)


@pytest.mark.parametrize("second", [(8, 24), (0, 16), (15, 31)])
def test_refuses_tensors_that_overlap(write: Write, second: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match=r"tensors a and b overlap"):
        read_header(write({"a": entry(), "b": entry(offsets=second)}, 32))


def test_accepts_neighbours_in_any_order(write: Write) -> None:
    path = write({"b": entry(offsets=(16, 32)), "a": entry()}, 32)
    entries = read_header(path)
    assert entries["b"].offset - entries["a"].offset == 16


def _outcome(path: Path) -> None:
    """A damaged file is refused, or what is returned lies inside the file and adds up."""
    try:
        entries = read_header(path)
    except BadInput:
        return
    size = path.stat().st_size
    spans = sorted((found.offset, found.offset + found.nbytes) for found in entries.values() if found.nbytes)
    assert all(8 <= begin <= end <= size for begin, end in spans)
    assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:], strict=False))


EDIT = st.tuples(st.sampled_from(["flip", "cut", "insert"]), st.integers(0, 2**32), st.integers(1, 255))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(EDIT, min_size=1, max_size=6))
def test_damaged_bytes_are_refused_or_harmless(valid: Path, tmp_path: Path, edits: list[tuple[str, int, int]]) -> None:
    raw = bytearray(valid.read_bytes())
    header_end = 8 + struct.unpack("<Q", raw[:8])[0]
    for action, where, value in edits:
        place = where % min(header_end, max(len(raw), 1))
        if action == "flip" and raw:
            raw[place % len(raw)] ^= value
        elif action == "cut":
            del raw[place:]
        else:
            raw[place:place] = bytes([value])
    path = tmp_path / "fuzzed.safetensors"
    path.write_bytes(raw)
    _outcome(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "U8", "BF16", "F8_E4M3", "X"]) | JSON,
        "shape": st.lists(st.integers(-1, 2**65) | st.integers(0, 4), max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | JSON,
    },
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.text(max_size=4), FIELDS | JSON, max_size=4) | JSON, data=st.integers(0, 40))
def test_any_json_is_refused_or_harmless(tmp_path: Path, header: object, data: int) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "fuzzed.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    _outcome(path)

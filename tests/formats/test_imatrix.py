"""Importance matrices in GGUF form: written, read by the gguf package and by quantkit, and refused when damaged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest
from imatrix_files import MadeUp, Values, make_up, write

from quantkit.errors import BadInput, QuantkitError
from quantkit.formats.gguf.metadata import string
from quantkit.formats.imatrix.read import read_imatrix
from quantkit.formats.imatrix.write import ImatrixEntry, write_imatrix

GATE = "blk.3.ffn_gate_exps.weight"
QUERY = "blk.3.attn_q.weight"


@pytest.fixture
def values() -> dict[str, Values]:
    return make_up({GATE: (5, 256), QUERY: (1, 96)})


@pytest.fixture
def made(tmp_path: Path, values: dict[str, Values]) -> MadeUp:
    return write(tmp_path / "imatrix.gguf", values, datasets=("a.txt", "b.txt"))


def test_the_gguf_package_finds_llama_cpps_keys_and_shapes(made: MadeUp) -> None:
    reader = gguf.GGUFReader(made.path)
    keys = {name: (field.types, field.contents()) for name, field in reader.fields.items() if "GGUF." not in name}
    u32, text = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.STRING
    assert keys == {
        "general.type": ([text], "imatrix"),
        "imatrix.datasets": ([gguf.GGUFValueType.ARRAY, text], ["a.txt", "b.txt"]),
        "imatrix.chunk_count": ([u32], 7),
        "imatrix.chunk_size": ([u32], 512),
    }
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert list(tensors) == [GATE + ".in_sum2", GATE + ".counts", QUERY + ".in_sum2", QUERY + ".counts"]
    assert {tensor.tensor_type for tensor in reader.tensors} == {gguf.GGMLQuantizationType.F32}
    assert tensors[GATE + ".in_sum2"].shape.tolist() == [256, 5]
    assert tensors[GATE + ".counts"].shape.tolist() == [1, 5]
    for name, (sums, counts) in made.values.items():
        np.testing.assert_array_equal(tensors[name + ".in_sum2"].data, sums)
        np.testing.assert_array_equal(tensors[name + ".counts"].data.reshape(-1), counts)


def test_entries_are_loaded_one_after_the_other(tmp_path: Path, values: dict[str, Values]) -> None:
    asked: list[str] = []

    def load(name: str) -> Values:
        asked.append(name)
        return values[name]

    entries = [ImatrixEntry(QUERY, 96, 1), ImatrixEntry(GATE, 256, 5)]
    extra = [string("quantkit.version", "1")]
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, entries, load, datasets=["a"], chunk_count=1, chunk_size=2, extra=extra)
    assert asked == [QUERY, GATE]
    assert gguf.GGUFReader(path).fields["quantkit.version"].contents() == "1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["imatrix.gguf"]


@pytest.mark.parametrize("where", ["sums", "counts"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_values_that_no_sum_of_squares_has_are_not_written(
    tmp_path: Path, values: dict[str, Values], where: str, bad: float
) -> None:
    sums, counts = values[GATE]
    (sums if where == "sums" else counts)[3] = bad
    with pytest.raises(QuantkitError, match=rf"{GATE}: {where} of matrix 3"):
        write(tmp_path / "imatrix.gguf", values)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_an_earlier_file_alone(made: MadeUp, values: dict[str, Values]) -> None:
    before = made.path.read_bytes()
    values[QUERY][0][:] = np.nan
    with pytest.raises(QuantkitError):
        write(made.path, values)
    assert made.path.read_bytes() == before
    with pytest.raises(QuantkitError, match=r"absent/x\.gguf\.partial: cannot be written"):
        write(made.path.parent / "absent" / "x.gguf", make_up({QUERY: (1, 96)}))


def test_values_of_another_shape_are_a_mistake_of_the_caller(tmp_path: Path, values: dict[str, Values]) -> None:
    with pytest.raises(ValueError, match=GATE):
        write_imatrix(
            tmp_path / "x", [ImatrixEntry(GATE, 255, 5)], values.__getitem__,
            datasets=["a"], chunk_count=1, chunk_size=1,
        )  # fmt: skip


def test_what_was_written_is_read(made: MadeUp) -> None:
    imatrix = read_imatrix(made.path)
    assert imatrix.entries == {GATE: ImatrixEntry(GATE, 256, 5), QUERY: ImatrixEntry(QUERY, 96, 1)}
    assert (imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size) == (("a.txt", "b.txt"), 7, 512)
    for name, (sums, counts) in made.values.items():
        for matrix, count in enumerate(counts):
            weights = imatrix.weights(name, matrix)
            assert weights is not None
            assert weights.dtype == np.float32
            np.testing.assert_array_equal(weights, sums[matrix] / count)
    assert imatrix.missing(GATE) == ()
    assert imatrix.weights("blk.3.attn_k.weight", 0) is None
    assert imatrix.sha256() == hashlib.sha256(made.path.read_bytes()).hexdigest()
    imatrix.check_values()


def test_experts_without_data_get_the_mean_of_the_others(tmp_path: Path, values: dict[str, Values]) -> None:
    sums, counts = values[GATE]
    sums[[1, 4]], counts[[1, 4]] = 0, 0
    imatrix = read_imatrix(write(tmp_path / "imatrix.gguf", values).path)
    assert imatrix.missing(GATE) == (1, 4)
    seen = [0, 2, 3]
    expected = sums[seen].astype(np.float64).sum(axis=0) / counts[seen].sum()
    for matrix in (1, 4):
        np.testing.assert_allclose(imatrix.weights(GATE, matrix), expected, rtol=1e-6)
    np.testing.assert_array_equal(imatrix.weights(GATE, 2), sums[2] / counts[2])


def test_an_entry_without_any_data_is_as_good_as_absent(tmp_path: Path, values: dict[str, Values]) -> None:
    sums, counts = values[GATE]
    sums[:], counts[:] = 0, 0
    imatrix = read_imatrix(write(tmp_path / "imatrix.gguf", values).path)
    assert imatrix.missing(GATE) == (0, 1, 2, 3, 4)
    assert imatrix.weights(GATE, 0) is None


def gguf_with(path: Path, tensors: dict[str, np.ndarray], general_type: str | None = "imatrix") -> Path:
    writer = gguf.GGUFWriter(path, "test")
    if general_type is not None:
        writer.add_type(general_type)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


SUMS, ONE = np.ones((4, 8), np.float32), np.ones((4, 1), np.float32)


@pytest.mark.parametrize(
    ("tensors", "general_type", "problem"),
    [
        ({"a.weight": SUMS}, "model", "not an importance matrix"),
        ({"a.weight": SUMS}, None, "not an importance matrix"),
        ({"a.weight.in_sum2": SUMS, "a.weight.counts": ONE}, "model", "not an importance matrix"),
        ({"a.weight.in_sum2": SUMS}, "imatrix", "entry a.weight has sums but no counts"),
        ({"a.weight.in_sum2": SUMS, "a.weight.counts": ONE[:3]}, "imatrix", r"entry a.weight: sums for \[8, 4\]"),
        ({"a.weight.in_sum2": SUMS, "a.weight.counts": np.ones((8, 4), np.float32)}, "imatrix", "entry a.weight"),
        ({"a.weight.in_sum2": SUMS.astype(np.float16), "a.weight.counts": ONE}, "imatrix", "entry a.weight is F16"),
        ({"a.weight.in_sum2": SUMS, "a.weight.counts": ONE * np.nan}, "imatrix", "entry a.weight: a count"),
        ({"a.weight.in_sum2": SUMS, "a.weight.counts": -ONE}, "imatrix", "entry a.weight: a count"),
    ],
)
def test_other_gguf_files_are_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray], general_type: str | None, problem: str
) -> None:
    path = gguf_with(tmp_path / "x.gguf", tensors, general_type)
    with pytest.raises(BadInput, match=problem) as caught:
        read_imatrix(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_without_the_keys_is_read_all_the_same(tmp_path: Path) -> None:
    imatrix = read_imatrix(gguf_with(tmp_path / "x.gguf", {"a.in_sum2": SUMS, "a.counts": ONE}, None))
    assert (imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size) == ((), 0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e-3])
def test_bad_values_are_found_when_read(tmp_path: Path, bad: float) -> None:
    sums = SUMS.copy()
    sums[2, 7] = bad
    imatrix = read_imatrix(gguf_with(tmp_path / "x.gguf", {"a.weight.in_sum2": sums, "a.weight.counts": ONE}))
    assert imatrix.weights("a.weight", 1) is not None
    for read in (lambda: imatrix.weights("a.weight", 2), imatrix.check_values):
        with pytest.raises(BadInput, match=r"x\.gguf: entry a\.weight, matrix 2: negative or not finite"):
            read()


@pytest.mark.parametrize("keep", [4, 8, 40, 200, 600, -29, -200, -5000])
def test_a_truncated_file_is_refused(made: MadeUp, keep: int) -> None:
    made.path.write_bytes(made.path.read_bytes()[:keep])
    with pytest.raises(BadInput, match=r"imatrix\.gguf: .*truncated"):
        read_imatrix(made.path)


def test_a_file_that_is_missing_or_replaced(made: MadeUp, values: dict[str, Values], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"absent\.gguf: cannot read the importance matrix"):
        read_imatrix(tmp_path / "absent.gguf")
    with pytest.raises(BadInput, match="cannot read the importance matrix"):
        read_imatrix(tmp_path)
    imatrix = read_imatrix(made.path)
    write(made.path, values | make_up({"blk.4.attn_q.weight": (1, 64)}))
    with pytest.raises(BadInput, match=r"imatrix\.gguf: was replaced during the run"):
        imatrix.weights(GATE, 0)


def test_values_are_read_when_asked_for(tmp_path: Path) -> None:
    """A file as large as M2.7's is opened without reading its values: this one has a hole of 400 MB there."""
    import resource
    import tracemalloc

    path = tmp_path / "large.gguf"
    writer = gguf.GGUFWriter(path, "test")
    writer.add_type("imatrix")
    writer.add_tensor_info("a.weight.counts", (256, 1), np.dtype(np.float32), 1024)
    writer.add_tensor_info("a.weight.in_sum2", (256, 400_000), np.dtype(np.float32), 4 * 256 * 400_000)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_tensor_data(np.ones((256, 1), np.float32))
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 4 * 256 * 400_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    imatrix = read_imatrix(path)
    assert imatrix.weights("a.weight", 200) is not None
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000

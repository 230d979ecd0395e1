"""The older `.dat` form: what llama-quantize makes of it, and damage."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from imatrix_files import Values, make_up, write_dat

from quantkit.errors import BadInput
from quantkit.formats.imatrix.read import read_imatrix
from quantkit.formats.imatrix.write import ImatrixEntry

DOWN = "blk.0.ffn_down_exps.weight"
QUERY = "blk.0.attn_q.weight"


@pytest.fixture
def values() -> dict[str, Values]:
    return make_up({DOWN: (4, 64), QUERY: (1, 96)})


def test_values_are_means_times_calls(tmp_path: Path, values: dict[str, Values]) -> None:
    imatrix = read_imatrix(write_dat(tmp_path / "imatrix.dat", values))
    assert imatrix.entries == {DOWN: ImatrixEntry(DOWN, 4 * 64, 1), QUERY: ImatrixEntry(QUERY, 96, 1)}
    assert (imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size) == (("made-up.txt",), 7, 0)
    sums, counts = values[QUERY]
    np.testing.assert_allclose(imatrix.weights(QUERY, 0), sums[0] / counts[0], rtol=1e-6)


def test_the_model_says_how_many_experts_share_an_entry(tmp_path: Path, values: dict[str, Values]) -> None:
    imatrix = read_imatrix(write_dat(tmp_path / "imatrix.dat", values)).stacked({DOWN: 4})
    assert imatrix.entries[DOWN] == ImatrixEntry(DOWN, 64, 4)
    sums, counts = values[DOWN]
    for matrix in range(4):
        np.testing.assert_allclose(imatrix.weights(DOWN, matrix), sums[matrix] / counts[matrix], rtol=1e-6)
    assert imatrix.missing(DOWN) == ()
    imatrix.check_values()


def test_without_calls_the_values_are_means(tmp_path: Path, values: dict[str, Values]) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(struct.pack("<ii", 1, 1) + b"a" + struct.pack("<iiff", 0, 2, 0.5, 2.0))
    np.testing.assert_array_equal(read_imatrix(path).weights("a", 0), np.array([0.5, 2.0], np.float32))


@pytest.mark.parametrize("trailer", [b"", b"\7\0\0\0", struct.pack("<ii", 7, 0)])
def test_the_trailer_is_optional(tmp_path: Path, values: dict[str, Values], trailer: bytes) -> None:
    imatrix = read_imatrix(write_dat(tmp_path / "imatrix.dat", values, trailer=trailer))
    assert imatrix.datasets == ()
    assert imatrix.chunk_count == (7 if len(trailer) == 8 else 0)


@pytest.mark.parametrize("keep", [0, 3, 4, 7, 20, 40, 500, 1200])
def test_a_truncated_file_is_refused(tmp_path: Path, values: dict[str, Values], keep: int) -> None:
    path = write_dat(tmp_path / "imatrix.dat", values)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadInput, match=r"imatrix\.dat: .*(truncated|not an importance matrix)"):
        read_imatrix(path)


@pytest.mark.parametrize(
    "content", [b"a text of some words\n" * 99, b"\0" * 99, b"\xff" * 99, b"PK\3\4" * 99, struct.pack("<iii", 1, 1, 1)]
)
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"imatrix\.dat: (not an importance matrix|ends within)"):
        read_imatrix(path)


def test_a_value_that_is_not_finite_is_found(tmp_path: Path, values: dict[str, Values]) -> None:
    values[QUERY][0][0, 5] = np.inf
    imatrix = read_imatrix(write_dat(tmp_path / "imatrix.dat", values))
    with pytest.raises(BadInput, match=f"entry {QUERY}, matrix 0"):
        imatrix.check_values()

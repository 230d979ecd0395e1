"""Importance matrices between quantkit and llama.cpp's programs: files, and the bytes of guided quantization."""

from pathlib import Path

import gguf
import imatrix_files
import numpy as np
import pytest
from imatrix_files import MadeUp
from reference_programs import CHECKPOINT, LLAMA_QUANTIZE, run_program, run_quantkit

from quantkit.formats.imatrix.read import read_imatrix

pytestmark = pytest.mark.full

LLAMA_IMATRIX = LLAMA_QUANTIZE.with_name("llama-imatrix")


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    """Complete for the fixture checkpoint, with other counts for every expert, output.weight included."""
    wanted = imatrix_files.shapes(CHECKPOINT)
    hidden = wanted["blk.0.attn_q.weight"][1]
    values = imatrix_files.make_up(wanted | {"output.weight": (1, hidden)})
    return imatrix_files.write(tmp_path_factory.mktemp("imatrix") / "imatrix.gguf", values)


@pytest.fixture(scope="module")
def dat(imatrix: MadeUp) -> Path:
    """The same as llama-imatrix writes it in the older form."""
    path = imatrix.path.with_suffix(".dat")
    run_program(LLAMA_IMATRIX, "-m", "none", "--in-file", imatrix.path, "-o", path, "--output-format", "dat")
    return path


def contents(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    left, right = contents(ours), contents(theirs)
    assert left.keys() == right.keys()
    for name, tensor in right.items():
        assert left[name].tensor_type == tensor.tensor_type, name
        assert np.array_equal(left[name].data.view(np.uint8), tensor.data.view(np.uint8)), name


@pytest.mark.parametrize(
    "mix",
    ["q4_k_m", "q2_k", "iq2_xs", "iq3_xxs", "iq1_s", "iq4_xs", "q4_0", "q5_0", "q2_k_s", "iq3_xs", "iq2_m", "iq1_m"],
)
def test_every_byte_of_a_bf16_checkpoint_is_llama_quantizes(
    mix: str, bf16_checkpoint: Path, converted: Path, imatrix: MadeUp, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    run_quantkit("gguf", mix, bf16_checkpoint, "-o", ours, "--no-overflow-guard", "--imatrix", imatrix.path)
    run_program(LLAMA_QUANTIZE, "--imatrix", imatrix.path, converted, theirs, mix)
    assert_same_tensors(ours, theirs)
    keys = [
        {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items() if "quantize.imatrix" in name}
        for path in (ours, theirs)
    ]
    assert len(keys[0]) == 4
    assert keys[0] == keys[1] | {"quantize.imatrix.file": imatrix.path.name}


def test_every_byte_with_a_dat_file(bf16_checkpoint: Path, converted: Path, dat: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    run_quantkit("gguf", "iq4_xs", bf16_checkpoint, "-o", ours, "--no-overflow-guard", "--imatrix", dat)
    run_program(LLAMA_QUANTIZE, "--imatrix", dat, converted, theirs, "iq4_xs")
    assert_same_tensors(ours, theirs)


def test_a_dat_file_that_became_a_gguf(bf16_checkpoint: Path, converted: Path, dat: Path, tmp_path: Path) -> None:
    """It has all experts of a tensor in one row, with one count."""
    path, ours, theirs = (tmp_path / name for name in ("imatrix.gguf", "ours.gguf", "theirs.gguf"))
    run_program(LLAMA_IMATRIX, "-m", "none", "--in-file", dat, "-o", path)
    run_quantkit("gguf", "iq4_xs", bf16_checkpoint, "-o", ours, "--no-overflow-guard", "--imatrix", path)
    run_program(LLAMA_QUANTIZE, "--imatrix", path, converted, theirs, "iq4_xs")
    assert_same_tensors(ours, theirs)


def test_llama_imatrix_reads_our_file_and_writes_the_same(imatrix: MadeUp, tmp_path: Path) -> None:
    path = tmp_path / "again.gguf"
    run_program(LLAMA_IMATRIX, "-m", "none", "--in-file", imatrix.path, "-o", path)
    ours, theirs = contents(imatrix.path), contents(path)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert np.array_equal(ours[name].data.reshape(-1), tensor.data.reshape(-1)), name
    again = read_imatrix(path)
    assert again.datasets == ("made-up.txt",)
    assert again.entries == read_imatrix(imatrix.path).entries


def test_a_dat_file_of_llama_imatrix_is_read(imatrix: MadeUp, dat: Path) -> None:
    read = read_imatrix(dat)
    assert read.entries.keys() == imatrix.values.keys()
    read = read.stacked({name: len(counts) for name, (_, counts) in imatrix.values.items()})
    for name, (_, counts) in imatrix.values.items():
        for matrix in range(len(counts)):
            np.testing.assert_allclose(read.weights(name, matrix), imatrix.weights(name, matrix), rtol=1e-6)

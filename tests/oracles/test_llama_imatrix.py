"""quantkit's importance matrix against llama-imatrix's: same weights, same tokens, same pieces of 256."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
from reference_programs import CHECKPOINT, LLAMA_QUANTIZE, run_program, run_quantkit

pytestmark = pytest.mark.full

LLAMA_IMATRIX = LLAMA_QUANTIZE.with_name("llama-imatrix")
TEXT = CHECKPOINT / "heldout" / "text_code.txt"
LENGTH, PIECES = 256, 15
STACKED = "_exps."

# In llama.cpp's own F32 run keys and values are rounded to F16 by default and attention is fused; neither here.
EXACT_ATTENTION = ("-ctk", "f32", "-ctv", "f32", "-fa", "off")


@dataclass(frozen=True)
class Sums:
    """Per tensor: sums of squared inputs [matrices, columns] and counts of rows [matrices]."""

    sums: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]

    def means(self, name: str) -> np.ndarray:
        """Mean squares of the matrices that saw rows."""
        seen = self.counts[name] > 0
        return self.sums[name][seen] / self.counts[name][seen, None]


def read(path: Path) -> Sums:
    """Read with gguf-py alone."""
    tensors = {tensor.name: tensor.data.astype(np.float64) for tensor in gguf.GGUFReader(path).tensors}
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    return Sums(
        {name: np.atleast_2d(tensors[f"{name}.in_sum2"]) for name in names},
        {name: tensors[f"{name}.counts"].reshape(-1) for name in names},
    )


def llama_imatrix(model: Path, out: Path, *options: str) -> Sums:
    command = ("-m", model, "-f", TEXT, "-o", out, "-c", str(LENGTH), "--chunks", str(PIECES), "--no-ppl", "-t", "2")
    run_program(LLAMA_IMATRIX, *command, "-ngl", "0", *options)
    return read(out)


def relative_differences(left: Sums, right: Sums) -> np.ndarray:
    """Per channel, of all tensors and of the experts that both saw: |difference of the means| / right's mean."""
    parts = []
    for name in right.sums:
        both = (left.counts[name] > 0) & (right.counts[name] > 0)
        ours = left.sums[name][both] / left.counts[name][both, None]
        theirs = right.sums[name][both] / right.counts[name][both, None]
        parts.append((np.abs(ours - theirs) / np.maximum(theirs, 1e-30)).reshape(-1))
    return np.concatenate(parts)


def rows_elsewhere(left: Sums, right: Sums) -> int:
    """Rows that went to another expert, over the gate projections of all layers."""
    names = [name for name in right.counts if "ffn_gate_exps" in name]
    return int(sum(np.abs(left.counts[name] - right.counts[name]).sum() / 2 for name in names))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama-imatrix")


@pytest.fixture(scope="module")
def ours_path(bf16_checkpoint: Path, folder: Path) -> Path:
    out = folder / "ours.gguf"
    options = ("--sequence-length", str(LENGTH), "--samples", str(PIECES), "--min-tokens-per-expert", "0")
    run_quantkit("imatrix", bf16_checkpoint, "-o", out, "--calibration", TEXT, *options, "--precision", "float32")
    return out


@pytest.fixture(scope="module")
def ours(ours_path: Path) -> Sums:
    return read(ours_path)


@pytest.fixture(scope="module")
def in_float32(bf16_checkpoint: Path, folder: Path) -> Sums:
    """llama-imatrix on the BF16 weights stored as F32."""
    model = folder / "f32.gguf"
    run_quantkit("gguf", "f32", bf16_checkpoint, "-o", model)
    return llama_imatrix(model, folder / "in_float32.gguf", *EXACT_ATTENTION)


@pytest.fixture(scope="module")
def in_bfloat16(converted: Path, folder: Path) -> Sums:
    """llama-imatrix as one would call it. It rounds activations to bfloat16 before each product with BF16 weights."""
    return llama_imatrix(converted, folder / "in_bfloat16.gguf")


def test_entries_are_llama_imatrixes(ours: Sums, in_float32: Sums) -> None:
    shapes = {name: sums.shape for name, sums in ours.sums.items()}
    assert shapes == {name: sums.shape for name, sums in in_float32.sums.items()}


def test_against_float32_products(ours: Sums, in_float32: Sums) -> None:
    for name, counts in in_float32.counts.items():
        np.testing.assert_array_equal(ours.counts[name], counts, err_msg=name)
    assert ours.counts["blk.0.attn_q.weight"] == [LENGTH * PIECES]
    differences = relative_differences(ours, in_float32)
    median, high = np.median(differences), np.quantile(differences, 0.99)
    print(f"\nF32: per channel median {median:.2e}, 99 % {high:.2e}, largest {differences.max():.2e}")
    assert median < 1e-4
    assert high < 1e-3
    # What the tolerance is worth: other channels differ by far more.
    gate = "blk.1.ffn_gate_exps.weight"
    shifted = np.roll(ours.means(gate), 1, axis=1)
    assert np.median(np.abs(shifted / in_float32.means(gate) - 1)) > 0.1


def test_against_bfloat16_products(ours: Sums, in_float32: Sums, in_bfloat16: Sums) -> None:
    assert ours.sums.keys() == in_bfloat16.sums.keys()
    for name, counts in in_bfloat16.counts.items():
        assert ours.counts[name].sum() == counts.sum(), name
        if STACKED not in name:
            np.testing.assert_array_equal(ours.counts[name], counts, err_msg=name)
    median = np.median(relative_differences(ours, in_bfloat16))
    elsewhere, own = rows_elsewhere(ours, in_bfloat16), rows_elsewhere(in_float32, in_bfloat16)
    total = sum(counts.sum() for name, counts in ours.counts.items() if "ffn_gate_exps" in name)
    print(
        f"\nBF16: per channel median {median:.2%}; {elsewhere} of {total:.0f} rows with another expert, "
        f"{own} between llama.cpp's own two runs"
    )
    assert median < 0.01
    assert own > 0
    assert elsewhere <= 1.5 * own


def test_llama_quantize_accepts_the_file(ours_path: Path, converted: Path, tmp_path: Path) -> None:
    guided, plain = tmp_path / "guided.gguf", tmp_path / "plain.gguf"
    run_program(LLAMA_QUANTIZE, "--imatrix", ours_path, converted, guided, "q4_k_m")
    run_program(LLAMA_QUANTIZE, converted, plain, "q4_k_m")
    left, right = ({tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in (guided, plain))
    changed = {name for name, tensor in left.items() if not np.array_equal(tensor.data, right[name].data)}
    quantized = {name for name, tensor in left.items() if tensor.tensor_type.name.endswith("_K")}
    assert changed == quantized - {"token_embd.weight", "output.weight"}


def test_llama_imatrix_reads_the_file_and_keeps_it(ours_path: Path, ours: Sums, tmp_path: Path) -> None:
    run_program(LLAMA_IMATRIX, "-m", "none", "--in-file", ours_path, "-o", tmp_path / "again.gguf")
    again = read(tmp_path / "again.gguf")
    assert again.sums.keys() == ours.sums.keys()
    for name, sums in ours.sums.items():
        np.testing.assert_array_equal(again.sums[name], sums, err_msg=name)
        np.testing.assert_array_equal(again.counts[name], ours.counts[name], err_msg=name)

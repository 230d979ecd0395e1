"""quantkit's quantized files against llama-quantize's, made from the same checkpoint by way of a BF16 file."""

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from reference_programs import CHECKPOINT, LLAMA_QUANTIZE, run_program, run_quantkit

from quantkit.recipe.mixes import MIXES

pytestmark = pytest.mark.full

# Same input, same algorithm, but another build of ggml: a compiler may round a float operation differently.
SMALLEST_EQUAL_FRACTION = 0.999

# From the exact FP8 products quantkit should be at least as near to them as llama-quantize, which starts from their
# BF16 rounding. Its scale search minimises something else than this error, so a tensor may be slightly worse: over
# eleven mixes of a random checkpoint, by 0.33 % at most.
LARGEST_ERROR_RATIO = 1.01


def read(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def weights(tensor: gguf.ReaderTensor) -> npt.NDArray[np.float64]:
    return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)


def equal_fraction(ours: dict[str, gguf.ReaderTensor], theirs: dict[str, gguf.ReaderTensor]) -> float:
    pairs = [(ours[name].data.view(np.uint8), tensor.data.view(np.uint8)) for name, tensor in theirs.items()]
    return sum(int(np.count_nonzero(left == right)) for left, right in pairs) / sum(right.size for _, right in pairs)


def relative_rms(difference: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(difference)) / np.mean(np.square(reference))))


@pytest.mark.parametrize("mix", [name for name, mix in MIXES.items() if not mix.needs_imatrix])
def test_from_a_bf16_checkpoint_every_mix_has_llama_quantizes_types_and_bytes(
    mix: str, bf16_checkpoint: Path, converted: Path, tmp_path: Path
) -> None:
    run_quantkit("gguf", mix, bf16_checkpoint, "-o", tmp_path / "ours.gguf", "--no-overflow-guard")
    run_program(LLAMA_QUANTIZE, converted, tmp_path / "theirs.gguf", mix)
    ours, theirs = read(tmp_path / "ours.gguf"), read(tmp_path / "theirs.gguf")
    assert {name: tensor.tensor_type for name, tensor in ours.items()} == {
        name: tensor.tensor_type for name, tensor in theirs.items()
    }
    equal = equal_fraction(ours, theirs)
    print(f"\n{mix}: equal bytes {equal:.6f}")
    assert equal >= SMALLEST_EQUAL_FRACTION
    ours_kind, theirs_kind = (
        gguf.GGUFReader(tmp_path / name).fields["general.file_type"].contents() for name in ("ours.gguf", "theirs.gguf")
    )
    assert ours_kind == theirs_kind


@pytest.mark.parametrize("mix", ["q4_k_m", "q8_0", "iq4_xs", "mxfp4_moe"])
def test_from_the_fp8_checkpoint_weights_are_as_near_to_the_exact_ones(
    mix: str, converted: Path, exact: Path, tmp_path: Path
) -> None:
    run_quantkit("gguf", mix, CHECKPOINT, "-o", tmp_path / "ours.gguf", "--no-overflow-guard")
    run_program(LLAMA_QUANTIZE, converted, tmp_path / "theirs.gguf", mix)
    ours, theirs, truth = read(tmp_path / "ours.gguf"), read(tmp_path / "theirs.gguf"), read(exact)
    ratios, apart = {}, []
    for name, tensor in theirs.items():
        reference, left, right = weights(truth[name]), weights(ours[name]), weights(tensor)
        apart.append(relative_rms(left - right, reference))
        if error := relative_rms(right - reference, reference):
            ratios[name] = relative_rms(left - reference, reference) / error
        else:
            assert np.array_equal(left, right), name
    print(
        f"\n{mix}: equal bytes {equal_fraction(ours, theirs):.4f}; relative RMS between the two: mean "
        f"{np.mean(apart):.5f}, worst {max(apart):.5f}; error to the exact weights, ours over llama-quantize's: "
        f"{min(ratios.values()):.4f} to {max(ratios.values()):.4f}"
    )
    assert max(ratios.values()) <= LARGEST_ERROR_RATIO

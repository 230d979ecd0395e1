"""The tables of mixes decide exactly what llama-quantize decides, for every type, layer count and head grouping."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import gguf
import pytest
import record_llama_quantize_types as recorder

from quantkit.errors import BadInput
from quantkit.recipe.mixes import (
    ALIASES,
    MIXES,
    WRITABLE_TYPES,
    ModelShape,
    block_size,
    mix_by_name,
    mix_type,
    needs_importance,
)

RECORDING: dict[str, Any] = json.loads(recorder.RECORDING.read_text())
CASES = [(recorder.Case(**entry["model"]), entry["mixes"], entry["with_imatrix"]) for entry in RECORDING["cases"]]
M27 = ModelShape(n_layers=62, n_experts=256, n_heads=48, n_kv_heads=8)


def model_of(case: recorder.Case, *, has_imatrix: bool = False) -> ModelShape:
    return ModelShape(case.layers, case.experts, case.heads, case.kv_heads, has_imatrix)


def recorded_types(mixes: dict[str, dict[str, str]], mix: str, case: recorder.Case) -> dict[str, str]:
    """The recorded type of every tensor, with those that are F32 in every mix filled in."""
    return dict.fromkeys(recorder.tensor_shapes(case), "F32") | recorder.expand(mixes[mix], case)


def our_types(mix: str, case: recorder.Case, *, has_imatrix: bool) -> dict[str, str]:
    model = model_of(case, has_imatrix=has_imatrix)
    return {name: mix_type(MIXES[mix], name, shape, model) for name, shape in recorder.tensor_shapes(case).items()}


each_case = pytest.mark.parametrize(
    ("case", "plain", "guided"), CASES, ids=lambda value: str(value) if not isinstance(value, dict) else ""
)


@each_case
@pytest.mark.parametrize("mix", [name for name, mix in MIXES.items() if not mix.needs_imatrix])
def test_every_tensor_gets_the_type_that_llama_quantize_picks(
    mix: str, case: recorder.Case, plain: dict[str, dict[str, str]], guided: dict[str, dict[str, str]]
) -> None:
    assert our_types(mix, case, has_imatrix=False) == recorded_types(plain, mix, case)


@each_case
@pytest.mark.parametrize("mix", MIXES)
def test_with_an_imatrix_as_well(
    mix: str, case: recorder.Case, plain: dict[str, dict[str, str]], guided: dict[str, dict[str, str]]
) -> None:
    assert our_types(mix, case, has_imatrix=True) == recorded_types(plain | guided, mix, case)


def test_the_recording_covers_m27s_depth_and_its_neighbours() -> None:
    assert {case.layers for case, _, _ in CASES} == {1, 3, 4, 10, 62}
    assert {case.heads // case.kv_heads for case, _, _ in CASES} == {3, 4, 6}
    m27 = next(guided for case, _, guided in CASES if case.layers == 62)
    assert m27.keys() == {name for name, mix in MIXES.items() if mix.needs_imatrix} | {
        "Q4_0",
        "Q5_0",
        "IQ4_NL",
        "IQ4_XS",
    }


def test_always_f32_tensors_are_those_that_llama_quantize_never_touches() -> None:
    case = recorder.Case(layers=1, heads=12, kv_heads=2)
    model = model_of(case)
    untouched = {
        name.removeprefix("blk.0.")
        for name, shape in recorder.tensor_shapes(case).items()
        if mix_type(MIXES["Q8_0"], name, shape, model) == "F32"
    }
    assert untouched == set(RECORDING["always_f32"].split())


def test_file_type_numbers_are_llama_quantizes() -> None:
    assert {name: mix.file_type for name, mix in MIXES.items()} == {
        name: RECORDING["file_types"][name] for name in MIXES
    }
    for name, mix in MIXES.items():
        prefix = "ALL" if name == "F32" else "MOSTLY"
        assert mix.file_type == gguf.LlamaFileType[f"{prefix}_{name}"]


def test_known_names_aliases_and_imatrix_types_are_llama_quantizes() -> None:
    assert RECORDING["aliases"] == ALIASES
    assert set(RECORDING["need_imatrix"].split()) == {name for name, mix in MIXES.items() if mix.needs_imatrix}
    # Ternary and binary types only make sense for models trained for them, so they are not offered.
    not_offered = {"TQ1_0", "TQ2_0", "Q1_0", "Q2_0"}
    assert RECORDING["file_types"].keys() == (MIXES.keys() | ALIASES.keys() | not_offered)


@pytest.mark.parametrize(
    ("name", "mix"),
    [("q4_k_m", "Q4_K_M"), ("Q4_k_M", "Q4_K_M"), ("q4_k", "Q4_K_M"), ("q5_K", "Q5_K_M"), ("F32", "F32")],
)
def test_names_are_case_insensitive_and_aliases_work(name: str, mix: str) -> None:
    assert mix_by_name(name).name == mix


def test_an_unknown_mix_lists_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"unknown type 'q4_k_xl'.*q4_k_m.*mxfp4_moe"):
        mix_by_name("q4_k_xl")


@pytest.mark.parametrize(
    ("mix", "tensor", "type_name", "needed"),
    [
        ("Q4_K_M", "blk.0.attn_q.weight", "IQ2_S", True),  # a rule put it there
        ("Q4_K_M", "blk.0.attn_q.weight", "Q2_K", False),
        ("Q2_K", "blk.0.attn_q.weight", "Q2_K", False),
        ("Q2_K_S", "blk.0.attn_q.weight", "Q2_K", True),
        ("Q2_K_S", "token_embd.weight", "Q2_K", False),
        ("Q2_K_S", "blk.0.attn_q.weight", "Q4_K", False),
        ("IQ3_XS", "blk.0.attn_q.weight", "IQ3_XXS", True),
        ("IQ3_XS", "blk.0.ffn_down_exps.weight", "IQ3_S", False),
        ("IQ1_S", "token_embd.weight", "IQ2_XXS", True),  # ggml itself ends the process
    ],
)
def test_tensors_that_cannot_do_without_importance(mix: str, tensor: str, type_name: str, needed: bool) -> None:
    assert needs_importance(MIXES[mix], tensor, type_name) == needed


def test_a_tensor_of_a_layer_beyond_the_model_is_refused() -> None:
    with pytest.raises(BadInput, match=r"blk\.62\.attn_v\.weight: the model has only 62 layers"):
        mix_type(MIXES["Q4_K_M"], "blk.62.attn_v.weight", (1024, 3072), M27)


def test_models_with_exactly_eight_experts_are_refused() -> None:
    with pytest.raises(BadInput, match="exactly 8 experts"):
        mix_type(MIXES["Q4_K_M"], "output.weight", (256, 256), ModelShape(2, 8, 12, 2))


def test_mxfp4_is_for_stacks_of_more_than_one_expert() -> None:
    single = ModelShape(n_layers=2, n_experts=1, n_heads=12, n_kv_heads=2)
    assert mix_type(MIXES["MXFP4_MOE"], "blk.0.ffn_up_exps.weight", (1, 256, 256), single) == "Q8_0"
    assert mix_type(MIXES["MXFP4_MOE"], "blk.0.ffn_up_exps.weight", (256, 1536, 3072), M27) == "MXFP4"


def test_a_tensor_with_one_row_is_one_dimensional_for_ggml() -> None:
    assert mix_type(MIXES["Q8_0"], "output.weight", (1, 256), M27) == "F32"


def test_block_sizes_of_writable_types() -> None:
    assert {name: block_size(name) for name in ("F32", "BF16", "Q8_0", "MXFP4", "IQ4_NL", "Q4_K", "IQ4_XS")} == {
        "F32": 1, "BF16": 1, "Q8_0": 32, "MXFP4": 32, "IQ4_NL": 32, "Q4_K": 256, "IQ4_XS": 256,
    }  # fmt: skip
    assert all(block_size(name) in {1, 32, 256} for name in WRITABLE_TYPES)


@pytest.mark.full
def test_the_recording_is_what_llama_quantize_says_today() -> None:
    folder = Path(os.environ.get("QUANTKIT_LLAMA_CPP", recorder.ROOT / ".cache" / "llama.cpp"))
    program = folder / "build" / "bin" / "llama-quantize"
    assert program.exists(), "run scripts/setup_llama_cpp first"
    fresh = recorder.record(program)
    assert fresh == {key: value for key, value in RECORDING.items() if key != "source"}


@pytest.mark.full
@pytest.mark.parametrize("mix", ["BF16", "F16", "F32", "Q4_K_M", "MXFP4_MOE"])
def test_a_real_quantization_writes_the_types_of_its_dry_run(tmp_path: Path, mix: str) -> None:
    """The dry run is the recording's source, so it has to be true of files, above all for the float outputs."""
    folder = Path(os.environ.get("QUANTKIT_LLAMA_CPP", recorder.ROOT / ".cache" / "llama.cpp"))
    case = recorder.Case(layers=3, heads=12, kv_heads=2)
    recorder.write_model(case, tmp_path / "in.gguf")
    program = folder / "build" / "bin" / "llama-quantize"
    subprocess.run([program, tmp_path / "in.gguf", tmp_path / "out.gguf", mix], check=True, capture_output=True)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    model = model_of(case)
    assert {tensor.name: tensor.tensor_type.name for tensor in reader.tensors} == {
        name: mix_type(MIXES[mix], name, shape, model) for name, shape in recorder.tensor_shapes(case).items()
    }
    assert reader.fields["general.file_type"].contents() == MIXES[mix].file_type

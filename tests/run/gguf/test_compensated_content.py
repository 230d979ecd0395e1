"""A compensated GGUF has the types and the layout of one with an importance matrix, and says how it was made."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import imatrix_files
import numpy as np
import pytest
from compensated_runs import LAYERS, Case, keys, tensors, token_set, types

from quantkit.quantize.compensate import COMPENSATED_TYPES
from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf.convert import write_gguf

ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
UNTOUCHED = ("_norm.weight", "ffn_gate_inp.weight", "exp_probs_b.bias", "token_embd.weight")


@pytest.fixture
def guided(layers3: Path, tmp_path: Path) -> Path:
    """Where the same checkpoint goes with an importance matrix."""
    imatrix_files.for_checkpoint(tmp_path / "i.gguf", layers3)
    return tmp_path / "guided.gguf"


# Q5_0 puts Q5_1 where an importance matrix is at hand; Q2_K_S and IQ2_XXS need one.
@pytest.mark.parametrize("mix", ["q4_k_m", "q5_0", "iq2_xxs", "q2_k_s", "mxfp4_moe"])
def test_types_and_places_are_those_with_an_importance_matrix(case: Case, guided: Path, mix: str) -> None:
    write_gguf(case.source, guided, recipe_from_options(mix), imatrix=guided.with_name("i.gguf"))
    case.run(mix)
    assert types(case.path()) == types(guided)
    ours, theirs = (gguf.GGUFReader(path) for path in (case.path(), guided))
    start, other = (min(tensor.data_offset for tensor in reader.tensors) for reader in (ours, theirs))
    for tensor, reference in zip(ours.tensors, theirs.tensors, strict=True):
        assert (tensor.name, tensor.data_offset - start) == (reference.name, reference.data_offset - other)
    found, expected = tensors(case.path()), tensors(guided)
    for name, raw in found.items():
        if name.endswith(UNTOUCHED):
            assert raw == expected[name], name
        elif types(guided)[name] in COMPENSATED_TYPES:
            assert raw != expected[name], name


def test_what_the_file_says(case: Case) -> None:
    case.run("q4_k_m", rules=("blk.1.attn_k=iq3_s", "blk.2.ffn_up=f16"))
    found = keys(case.path())
    assert found["quantkit.compensated"] is True
    assert found["quantkit.compensation.led_by"] == "Q4_K_M"
    assert found["quantkit.compensation.tensors_without"] == ["token_embd.weight", "blk.1.attn_k.weight"]
    assert found["quantkit.calibration.tokens_sha256"] == token_set().sha256()
    assert json.loads(found["quantkit.calibration"]) == {"corpus": "random"}
    assert found["quantkit.calibration.min_tokens_per_expert"] == 32
    assert found["quantkit.calibration.precision"] == "float32"


def test_a_plain_file_does_not_say_so(case: Case) -> None:
    write_gguf(case.source, case.path(), recipe_from_options("q4_k_m"))
    assert not [key for key in keys(case.path()) if "compensat" in key or "calibration" in key]


def test_report(case: Case) -> None:
    result = case.run("q4_k_m", rules=("blk.1.attn_k=iq3_s", "blk.2.ffn_up=f16"))
    (file,) = result.files
    assert file.report == case.folder / "M.quantkit.json"
    report = json.loads(file.report.read_text())
    assert report == json.loads(json.dumps(file.content))
    assert report["mix"] == report["led_by"] == "Q4_K_M"
    assert report["tokens"] == 192
    assert report["tokens_sha256"] == token_set().sha256()
    assert report["coverage"]["min_tokens_per_expert"] == 32
    assert report["excluded_tokens"] == []
    assert report["tensors_without"] == ["token_embd.weight", "blk.1.attn_k.weight"]
    assert report["compensated_tensors"] == LAYERS * len(ROLES) + 1 - 2
    assert [layer.pop("layer") for layer in report["losses"]] == list(range(LAYERS))
    missing = [sorted(set(ROLES) - set(layer)) for layer in report["losses"]]
    assert missing == [[], ["attn_k"], ["ffn_up_exps"]]
    everything = [*report["losses"], report["losses_of_output"]]
    ratios = [entry["to_importance"] for layer in everything for entry in layer.values()]
    for layer in everything:
        for entry in layer.values():
            assert entry["to_importance"] == round(entry["compensated"] / entry["importance"], 4)
            assert entry["to_plain"] == round(entry["compensated"] / entry["plain"], 4)
    assert report["error_to_importance"] == round(float(np.mean(ratios)), 4)
    assert report["error_to_importance"] < 0.8
    assert max(ratios) < 1


def test_casts_are_the_checkpoints_own_weights(case: Case, tmp_path: Path) -> None:
    """Also where w1 and w3, or q and k, differ in type; what is behind them is compensated all the same."""
    rules = ("attn_k=f16", "ffn_up_exps=bf16", "blk.1.ffn_down=f32", "^output.weight=f16")
    case.run("q4_k_m", rules=rules)
    plain = tmp_path / "plain.gguf"
    write_gguf(case.source, plain, recipe_from_options("q4_k_m", tensor_types=rules))
    found, expected = tensors(case.path()), tensors(plain)
    kinds = types(plain)
    for name, raw in found.items():
        same = kinds[name] in ("F16", "BF16", "F32") or name == "token_embd.weight"
        assert (raw == expected[name]) == same, name


def test_everything_in_codebooks_but_one(case: Case) -> None:
    """Hardly anything but output.weight and attn_v has a rounding rule in IQ2_XXS; the run says so."""
    (file,) = case.run("iq2_xxs").files
    names = [name for name, kind in types(case.path()).items() if kind.startswith("IQ")]
    assert set(file.content["tensors_without"]) == {*names, "token_embd.weight"}
    assert len(names) > LAYERS * 3


def test_experts_without_tokens_are_counted(case: Case) -> None:
    """One token reaches one of the two experts of a layer; the other is solved nevertheless."""
    (file,) = case.run("q4_k_m", tokens=token_set(lengths=(1,)), min_tokens=0).files
    assert file.content["coverage"]["experts_without_tokens"] == LAYERS
    assert file.content["fallbacks"]["experts_without_tokens"] == LAYERS
    for tensor in gguf.GGUFReader(case.path()).tensors:
        assert np.isfinite(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).all()


def test_split_outputs(case: Case, tmp_path: Path) -> None:
    case.run("q4_k_m")
    whole = tensors(case.path())
    (file,) = case.run("q4_k_m", force=True, split_max_size=700_000).files
    assert len(file.gguf.outputs) > 1
    parts: dict[str, bytes] = {}
    for path in file.gguf.outputs:
        parts |= tensors(path)
    assert parts == whole
    assert file.report == case.folder / "M.quantkit.json"


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_reruns_do_not_change_the_bytes(case: Case, threads: int) -> None:
    case.run("q3_k_m", "iq4_xs")
    first = {path.name: path.read_bytes() for path in case.folder.iterdir()}
    case.run("q3_k_m", "iq4_xs", threads=threads, force=True)
    assert {path.name: path.read_bytes() for path in case.folder.iterdir()} == first

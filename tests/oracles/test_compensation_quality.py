"""Compensated GGUF files against importance matrices and AutoRound: KL divergence to the FP8 model, same tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from reference_programs import ROOT, run_program

pytestmark = [pytest.mark.full, pytest.mark.timeout(10_800)]

MODE, HELD_OUT = "experts and attention", "held out"
WHOLE_MIXES = ("whole mix", "attention at Q8_0")
# What a compensated file may have of the divergence of the same type with an importance matrix.
MEANS = {"q2_k": 0.6, "q3_k_m": 0.6, "q4_k_m": 0.75, "iq4_xs": 0.75, "q5_k_m": 0.9, "q6_k": 0.9}
MEDIANS = {"q4_k_m": 0.6, "iq4_xs": 0.6}
MATRICES = ("imatrix", "llama.cpp")  # quantkit's, and llama-imatrix with llama-quantize
OTHER_KINDS = ("prose", "multilingual")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path: Path = tmp_path_factory.mktemp("compensation") / "compensation.json"
    run_program(sys.executable, ROOT / "scripts" / "bench_compensation.py", "--json", path)
    return json.loads(path.read_text())


def file_of(found: dict[str, Any], mode: str, type_name: str, method: str) -> dict[str, Any]:
    key = (mode, type_name, method)
    return next(row for row in found["files"] if (row["mode"], row["type"], row["method"]) == key)


def ratio(found: dict[str, Any], type_name: str, against: str, kind: str, figure: str) -> dict[str, float]:
    key = (MODE, type_name, against, kind)
    row = next(row for row in found["ratios"] if (row["mode"], row["type"], row["against"], row["kind"]) == key)
    print(f"\n{type_name}, {kind}: {figure} over {against} {row[figure]}")
    return row[figure]


def test_enough_was_scored(found: dict[str, Any]) -> None:
    assert found["positions"][HELD_OUT] >= 10_000
    assert all(found["positions"][kind] >= 8000 for kind in OTHER_KINDS)
    assert found["prompts"] >= 100


@pytest.mark.parametrize("type_name", MEANS)
@pytest.mark.parametrize("mode", [MODE, "whole mix"])
def test_types_and_bytes_are_those_of_the_same_mix(found: dict[str, Any], mode: str, type_name: str) -> None:
    ours = file_of(found, mode, type_name, "compensated")["size"]
    assert [file_of(found, mode, type_name, against)["size"] for against in MATRICES] == [ours, ours]


@pytest.mark.parametrize("against", MATRICES)
@pytest.mark.parametrize("type_name", MEANS)
def test_mean_divergence(found: dict[str, Any], type_name: str, against: str) -> None:
    assert ratio(found, type_name, against, HELD_OUT, "mean")["value"] <= MEANS[type_name]


@pytest.mark.parametrize("against", MATRICES)
@pytest.mark.parametrize("type_name", MEDIANS)
def test_median_divergence(found: dict[str, Any], type_name: str, against: str) -> None:
    assert ratio(found, type_name, against, HELD_OUT, "median")["value"] <= MEDIANS[type_name]


@pytest.mark.parametrize("against", MATRICES)
@pytest.mark.parametrize("kind", OTHER_KINDS)
@pytest.mark.parametrize("type_name", MEANS)
def test_other_kinds_of_text_are_never_worse(found: dict[str, Any], type_name: str, kind: str, against: str) -> None:
    assert ratio(found, type_name, against, kind, "mean")["value"] <= 1
    assert ratio(found, type_name, against, kind, "median")["value"] <= 1


@pytest.mark.parametrize("mode", [MODE, *WHOLE_MIXES])
def test_tool_calls_agree_no_less(found: dict[str, Any], mode: str) -> None:
    """Over all types: a single one is a few prompts."""
    rows = [row for row in found["files"] if row["mode"] == mode]
    ours, theirs = (
        sum(row["answers"] for row in rows if row["method"] == method) for method in ("compensated", "imatrix")
    )
    print(f"\n{mode}: same greedy answers, summed over types: {ours:.3f} against {theirs:.3f}")
    assert ours >= theirs


def test_divergence_is_not_above_autorounds(found: dict[str, Any]) -> None:
    ours, theirs = (file_of(found, "whole mix", "q4_k_m", method)["size"] for method in ("compensated", "AutoRound"))
    assert ours == theirs
    assert ratio(found, "q4_k_m", "AutoRound", HELD_OUT, "mean")["value"] <= 1
    assert ratio(found, "q4_k_m", "AutoRound", HELD_OUT, "median")["value"] <= 1


def test_attention_at_8_bits(found: dict[str, Any]) -> None:
    """A few bytes more for what every token passes through: less divergence, with and without compensation."""
    stock, richer = (
        [file_of(found, mode, "q4_k_m", method) for method in ("imatrix", "compensated")] for mode in WHOLE_MIXES
    )
    for less, more in zip(stock, richer, strict=True):
        assert more["size"]["tensor_bytes"] > less["size"]["tensor_bytes"]
        assert more["divergence"][HELD_OUT]["mean"] < less["divergence"][HELD_OUT]["mean"]

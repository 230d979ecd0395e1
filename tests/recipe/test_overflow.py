"""The overflow guard: the last layer's down experts never keep a type whose CUDA kernel sums activations in float16."""

from dataclasses import replace

import pytest

from quantkit.recipe.mixes import MIXES, WRITABLE_TYPES, ModelShape, mix_type
from quantkit.recipe.overflow import SAFE_REPLACEMENT, UNSAFE_TYPES, guarded_type

LAST_DOWN = "blk.61.ffn_down_exps.weight"
M27 = ModelShape(n_layers=62, n_experts=256, n_heads=48, n_kv_heads=8)


def test_every_replacement_is_safe_and_writable() -> None:
    assert not UNSAFE_TYPES & set(SAFE_REPLACEMENT.values())
    assert SAFE_REPLACEMENT.keys() | set(SAFE_REPLACEMENT.values()) <= WRITABLE_TYPES


@pytest.mark.parametrize(
    ("type", "safe"),
    [
        ("Q4_0", "IQ4_XS"),
        ("Q4_1", "IQ4_XS"),
        ("Q4_K", "Q6_K"),
        ("Q5_K", "Q6_K"),
        ("Q5_0", "Q6_K"),
        ("Q5_1", "Q6_K"),
        ("Q2_K", "Q3_K"),
        ("IQ1_S", "IQ2_XXS"),
    ],
)
def test_an_unsafe_type_of_the_last_down_is_replaced(type: str, safe: str) -> None:
    assert guarded_type(LAST_DOWN, type, n_layers=62) == safe


@pytest.mark.parametrize(
    "type",
    [
        "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q3_K", "IQ4_XS", "IQ4_NL", "MXFP4", "IQ3_S", "IQ3_XXS", "IQ2_S",
        "IQ2_XS", "IQ2_XXS", "IQ1_M",
    ],
)  # fmt: skip
def test_a_safe_type_stays(type: str) -> None:
    assert guarded_type(LAST_DOWN, type, n_layers=62) == type


@pytest.mark.parametrize(
    "name", ["blk.60.ffn_down_exps.weight", "blk.61.ffn_up_exps.weight", "blk.61.attn_v.weight", "output.weight"]
)
def test_other_tensors_stay(name: str) -> None:
    assert guarded_type(name, "Q4_K", n_layers=62) == "Q4_K"


def test_more_layers_can_be_guarded_and_none() -> None:
    guarded = [
        layer for layer in range(62) if guarded_type(f"blk.{layer}.ffn_down_exps.weight", "Q4_K", 62, 3) == "Q6_K"
    ]
    assert guarded == [59, 60, 61]
    assert guarded_type(LAST_DOWN, "Q4_K", n_layers=62, guarded_layers=0) == "Q4_K"


@pytest.mark.parametrize("has_imatrix", [False, True])
def test_mixes_that_need_the_guard_on_m27(has_imatrix: bool) -> None:
    """The stock presets known to answer NaN on CUDA; every other mix passes unchanged."""
    model = replace(M27, has_imatrix=has_imatrix)
    shape = (256, 3072, 1536)
    unsafe = {name for name, mix in MIXES.items() if mix_type(mix, LAST_DOWN, shape, model) in UNSAFE_TYPES}
    assert unsafe == {
        "Q5_K_S", "Q4_K_S", "Q3_K_L", "Q3_K_M", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K_S", "IQ1_S",
    }  # fmt: skip

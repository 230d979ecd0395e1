"""Recipes: what a YAML file and --tensor-type may say, who wins, and what is refused."""

import dataclasses
from pathlib import Path

import pytest
import record_llama_quantize_types as recorder

from quantkit.errors import BadInput
from quantkit.recipe.mixes import ModelShape
from quantkit.recipe.recipe import (
    Change,
    Recipe,
    Resolved,
    TensorRule,
    load_recipe,
    parse_tensor_type,
    recipe_from_options,
    resolve_types,
)

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
CASE = recorder.Case(layers=4, heads=12, kv_heads=2)
MODEL = ModelShape(CASE.layers, CASE.experts, CASE.heads, CASE.kv_heads)
TENSORS = recorder.tensor_shapes(CASE)


def resolve(base: str, *tensor_types: str, guard: bool = True) -> Resolved:
    recipe = recipe_from_options(base=base, tensor_types=tensor_types, overflow_guard=guard)
    return resolve_types(recipe, TENSORS, MODEL)


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_without_overrides_the_mix_decides() -> None:
    resolved = resolve("q4_k_m")
    assert resolved.types["blk.2.ffn_down_exps.weight"] == "Q6_K"
    assert resolved.types["blk.1.ffn_down_exps.weight"] == "Q4_K"
    assert resolved.types.keys() == TENSORS.keys()
    assert resolved.overrides == ()
    assert resolved.overflow_changes == ()


def test_an_override_is_searched_unanchored_ignoring_case_and_reports_its_hits() -> None:
    resolved = resolve("q4_k_m", r"BLK\.0\.FFN_UP=q8_0")
    (hits,) = resolved.overrides
    assert str(hits.rule) == r"BLK\.0\.FFN_UP=Q8_0"
    assert hits.changes == (Change("blk.0.ffn_up_exps.weight", "Q4_K", "Q8_0"),)
    assert [name for name, kind in resolved.types.items() if kind == "Q8_0"] == ["blk.0.ffn_up_exps.weight"]


def test_the_first_matching_rule_wins_and_the_command_line_comes_first(tmp_path: Path) -> None:
    path = write(tmp_path, "base: q4_k_m\ntensors:\n- {match: attn_v, type: q5_k}\n- {match: attn_, type: q6_k}\n")
    recipe = recipe_from_options("q4_k_m", path, ["attn_q=q8_0"])
    types = resolve_types(recipe, TENSORS, MODEL).types
    assert {types[f"blk.1.attn_{role}.weight"] for role in ("k", "output")} == {"Q6_K"}
    assert types["blk.1.attn_v.weight"] == "Q5_K"
    assert types["blk.1.attn_q.weight"] == "Q8_0"


def test_a_recipe_for_another_base_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "base: q4_k_m\noverflow_guard: false\n")
    assert recipe_from_options("Q4_K_M", path) == Recipe(base="Q4_K_M", overflow_guard=False)
    with pytest.raises(BadInput, match=r"recipe\.yaml: base is q4_k_m but the type given is q8_0"):
        recipe_from_options("q8_0", path)


def test_tensors_that_are_never_quantized_are_passed_over_by_a_broad_rule() -> None:
    """`attn_q` also matches attn_q_norm, and `ffn_gate` the router: they stay F32 as in llama-quantize."""
    types = resolve("q4_k_m", "attn_q=q8_0", "ffn_gate=q8_0").types
    assert types["blk.0.attn_q_norm.weight"] == types["blk.0.ffn_gate_inp.weight"] == "F32"
    assert types["blk.0.attn_q.weight"] == types["blk.0.ffn_gate_exps.weight"] == "Q8_0"


@pytest.mark.parametrize("match", ["ffn_gate_inp", "exp_probs_b", "attn_norm", "_norm", "output_norm"])
def test_a_rule_for_nothing_but_f32_tensors_is_refused(match: str) -> None:
    with pytest.raises(BadInput, match=f"tensor rule {match}=Q8_0: matches only tensors that always stay F32"):
        resolve("q4_k_m", f"{match}=q8_0")


def test_a_rule_that_matches_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match=r"blk\\.9\\.=Q8_0: no tensor of this model matches"):
        resolve("q4_k_m", r"blk\.9\.=q8_0")


def test_overrides_hold_for_float_bases_too() -> None:
    assert resolve("bf16", "ffn_up_exps=q8_0").types["blk.3.ffn_up_exps.weight"] == "Q8_0"


def test_the_guard_changes_the_last_down_experts_and_reports_it() -> None:
    resolved = resolve("q4_k_s")
    assert resolved.overflow_changes == (Change("blk.3.ffn_down_exps.weight", "Q4_K", "Q6_K"),)
    assert resolved.types["blk.3.ffn_down_exps.weight"] == "Q6_K"
    assert resolved.types["blk.2.ffn_down_exps.weight"] == "Q4_K"


def test_the_guard_is_over_overrides_unless_switched_off() -> None:
    rule = r"blk\.3\.ffn_down=q5_k"
    assert resolve("q4_k_m", rule).types["blk.3.ffn_down_exps.weight"] == "Q6_K"
    assert resolve("q4_k_m", rule, guard=False).types["blk.3.ffn_down_exps.weight"] == "Q5_K"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("attn_q", "expected REGEX=TYPE"),
        ("=q8_0", "match: the expression is empty"),
        ("attn_q=", "type: unknown tensor type ''"),
        ("attn_q=q4_k_m", "type: unknown tensor type 'q4_k_m'; choose one of bf16, f16"),
        ("attn_(q=q8_0", r"match: 'attn_\(q' is not a regular expression"),
    ],
)
def test_a_bad_tensor_type_option_is_refused(text: str, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        parse_tensor_type(text)


def test_an_expression_may_contain_an_equals_sign() -> None:
    assert parse_tensor_type("attn_(?=v)=q8_0") == TensorRule(match="attn_(?=v)", type="Q8_0")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("base: q4_k_xl", "base: unknown type 'q4_k_xl'"),
        ("base: 4", "base: Input should be a valid string"),
        ("name: x", "base: this field is required"),
        ("base: q8_0\nbits: 4", "bits: unknown field"),
        ("base: q8_0\noverflow_guard: 1", "overflow_guard: Input should be a valid boolean"),
        ("base: q8_0\ntensors: attn", "tensors: expected a list"),
        ("base: q8_0\ntensors: [attn]", r"tensors\[0\]: expected a mapping"),
        ("base: q8_0\ntensors:\n- {match: attn}", r"tensors\[0\]\.type: this field is required"),
        ("base: q8_0\ntensors:\n- {match: '[', type: q8_0}", r"tensors\[0\]\.match: '\[' is not a regular"),
        ("base: q8_0\ntensors:\n- {match: a, type: q9}", r"tensors\[0\]\.type: unknown tensor type 'q9'"),
        ("- base", "a recipe is a mapping"),
        ("base: [", "not YAML"),
    ],
)
def test_a_bad_recipe_file_is_refused_in_one_line_with_file_and_field(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BadInput, match=problem) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot read the recipe"):
        load_recipe(tmp_path / "absent.yaml")


def test_the_shipped_attn8_recipe() -> None:
    """Q8_0 for attention, embeddings and output; Q4_K_M's choice for the experts."""
    types = resolve_types(load_recipe(RECIPES / "q4_k_m-attn8.yaml"), TENSORS, MODEL).types
    plain = resolve("q4_k_m").types
    changed = {name for name in types if types[name] != plain[name]}
    assert changed == {name for name in TENSORS if "attn_" in name and "norm" not in name} | {
        "token_embd.weight",
        "output.weight",
    }
    assert {types[name] for name in changed} == {"Q8_0"}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_recipe_loads_and_applies(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.description
    assert all(hits.changes for hits in resolve_types(recipe, TENSORS, MODEL).overrides)


def test_the_result_does_not_depend_on_which_overrides_came_before() -> None:
    """llama-quantize counts attn_v tensors it decides itself, so its overrides shift later layers; ours do not."""
    types = resolve("q4_k_m", r"blk\.0\.attn_v=q8_0").types
    plain = resolve("q4_k_m").types
    assert {name for name in types if types[name] != plain[name]} == {"blk.0.attn_v.weight"}


def test_resolved_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve("q8_0").types = {}  # type: ignore[misc]

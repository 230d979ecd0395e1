"""Recipes: a mix of llama-quantize plus per-tensor overrides, from a YAML file or the command line.

    name: q4_k_m with attention at 8 bits
    base: q4_k_m
    overflow_guard: true
    tensors:
      - {match: 'attn_(q|k|v|output)\\.weight', type: q8_0}

**Overrides** follow `llama-quantize --tensor-type REGEX=TYPE`: the expression is searched in the GGUF tensor name (not
anchored), the first rule that matches decides, a decided tensor skips the mix, and tensors that are never quantized
(norms, router, bias) are passed over. Rules of the command line come before those of the file. Different on purpose:

* llama-quantize lower-cases the expression, which turns `\\D` into `\\d`; here case is ignored instead.
* llama-quantize ignores overrides when the base is F32, F16 or BF16; here they hold for every base.
* In llama-quantize an overridden `attn_v` shifts which of the later layers count as the ones with more bits; here the
  mix of a layer does not depend on the overrides.
* A rule that matches no tensor, or only tensors that are never quantized, is an error: most likely a typo.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from quantkit.errors import BadInput
from quantkit.recipe.mixes import (
    WRITABLE_TYPES,
    ModelShape,
    is_quantizable,
    mix_by_name,
    mix_type,
)
from quantkit.recipe.overflow import guarded_type
from quantkit.yaml_models import read_mapping, validated


def _known_mix(name: str) -> str:
    try:
        return mix_by_name(name).name
    except BadInput as error:
        raise ValueError(str(error)) from error


def _writable_type(name: str) -> str:
    if name.upper() in WRITABLE_TYPES:
        return name.upper()
    raise ValueError(f"unknown tensor type {name!r}; choose one of {', '.join(sorted(WRITABLE_TYPES)).lower()}")


def _valid_regex(expression: str) -> str:
    if not expression:
        raise ValueError("the expression is empty, so it would match every tensor")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of expressions that another version will read in another way
            re.compile(expression)
    except (re.error, Warning, OverflowError, RecursionError) as error:
        raise ValueError(f"{expression!r} is not a regular expression: {error}") from error
    return expression


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TensorRule(_Strict):
    """Tensors whose name contains `match` (a regular expression, case ignored) get the ggml type `type`."""

    match: Annotated[str, AfterValidator(_valid_regex)]
    type: Annotated[str, AfterValidator(_writable_type)]

    def matches(self, gguf_name: str) -> bool:
        return re.search(self.match, gguf_name, re.IGNORECASE) is not None

    def __str__(self) -> str:
        return f"{self.match}={self.type}"


class Recipe(_Strict):
    """Which type every tensor gets; `base` is a mix name in llama-quantize's spelling, canonical after validation."""

    base: Annotated[str, AfterValidator(_known_mix)]
    tensors: tuple[TensorRule, ...] = ()
    overflow_guard: bool = True
    name: str | None = None
    description: str | None = None


@dataclass(frozen=True)
class Change:
    """A tensor whose type is not what the mix alone says (an override) or what the rules say (the overflow guard)."""

    tensor: str
    before: str
    after: str


@dataclass(frozen=True)
class Hits:
    """What one rule did: the tensors it decided, in the model's order, with the mix's type before and its own after."""

    rule: TensorRule
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Resolved:
    """A recipe applied to a model: a ggml type name for every tensor, and how it came about."""

    types: dict[str, str]
    overrides: tuple[Hits, ...]
    overflow_changes: tuple[Change, ...]


def load_recipe(path: Path) -> Recipe:
    """Reads and checks a YAML recipe; raises BadInput with one line that names the file and the field."""
    data = read_mapping(path, "recipe", "a recipe is a mapping with the field 'base'; see recipes/ for examples")
    return validated(Recipe, data, str(path))


def recipe_from_options(
    base: str, file: Path | None = None, tensor_types: Sequence[str] = (), overflow_guard: bool | None = None
) -> Recipe:
    """The recipe of one command line: `REGEX=TYPE` rules come before the file's rules.

    Raises BadInput when the file was made for another base than `base`.
    """
    mix = mix_by_name(base).name
    recipe = load_recipe(file) if file else Recipe(base=mix)
    if recipe.base != mix:
        raise BadInput(f"{file}: base is {recipe.base.lower()} but the type given is {mix.lower()}; make them agree")
    updates: dict[str, Any] = {"tensors": (*map(parse_tensor_type, tensor_types), *recipe.tensors)}
    if overflow_guard is not None:
        updates["overflow_guard"] = overflow_guard
    return recipe.model_copy(update=updates)


def parse_tensor_type(text: str) -> TensorRule:
    """One `--tensor-type REGEX=TYPE`; the last `=` separates, so that the expression may contain others."""
    match, separator, type_name = text.rpartition("=")
    if not separator:
        raise BadInput(f"--tensor-type {text}: expected REGEX=TYPE")
    return validated(TensorRule, {"match": match, "type": type_name}, f"--tensor-type {text}")


def resolve_types(
    recipe: Recipe, tensors: Mapping[str, tuple[int, ...]], model: ModelShape, guarded_layers: int = 1
) -> Resolved:
    """Applies `recipe` to `tensors` (GGUF name: numpy shape): rules first, then the mix, last the overflow guard.

    Raises BadInput for a rule that matches nothing, or nothing but tensors that always stay F32.
    """
    _refuse_idle_rules(recipe.tensors, tensors)
    mix = mix_by_name(recipe.base)
    types: dict[str, str] = {}
    decided: dict[TensorRule, list[Change]] = {rule: [] for rule in recipe.tensors}
    guarded: list[Change] = []
    for name, shape in tensors.items():
        chosen = mix_type(mix, name, shape, model)
        rule = next((rule for rule in recipe.tensors if rule.matches(name)), None)
        if rule is not None and is_quantizable(name, shape):
            decided[rule].append(Change(name, chosen, rule.type))
            chosen = rule.type
        types[name] = guarded_type(name, chosen, model.n_layers, guarded_layers) if recipe.overflow_guard else chosen
        if types[name] != chosen:
            guarded.append(Change(name, chosen, types[name]))
    hits = tuple(Hits(rule, tuple(changes)) for rule, changes in decided.items())
    return Resolved(types, hits, tuple(guarded))


def _refuse_idle_rules(rules: tuple[TensorRule, ...], tensors: Mapping[str, tuple[int, ...]]) -> None:
    for rule in rules:
        hits = [name for name in tensors if rule.matches(name)]
        if not hits:
            raise BadInput(f"tensor rule {rule}: no tensor of this model matches; names look like {_example(tensors)}")
        if not any(is_quantizable(name, tensors[name]) for name in hits):
            raise BadInput(
                f"tensor rule {rule}: matches only tensors that always stay F32, such as {hits[0]} "
                "(norms, the router and its bias are never quantized)"
            )


def _example(tensors: Mapping[str, tuple[int, ...]]) -> str:
    return next(
        (name for name, shape in tensors.items() if name.startswith("blk.") and is_quantizable(name, shape)), "-"
    )

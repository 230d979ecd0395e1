"""The type mixes of llama-quantize for MiniMax-M2, as data: which ggml type every tensor of a GGUF file gets.

A mix is a base type, a type for `output.weight`, and rules per tensor role; the first rule that applies decides.
What the tables say is what llama-quantize (llama.cpp as in llama-cpp-python 0.3.36) does for architecture
`minimax-m2` without an importance matrix; `tests/recipe/test_mixes.py` compares them with its recorded decisions.

Two things llama-quantize does are not modelled here, on purpose:

* Row lengths that a type's block does not divide make it fall back to another type. The caller refuses such a model
  instead (see `block_size`), because a mix that silently is another mix helps nobody.
* Models with exactly 8 experts (Mixtral) get extra types. `mix_type` refuses them.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

import gguf

from quantkit.errors import BadInput

Layers = Callable[[int, int], bool]
"""Does a rule apply to this layer (0-based) of so many layers?"""


@dataclass(frozen=True)
class ModelShape:
    """What a mix may depend on besides the tensor itself."""

    n_layers: int
    n_experts: int
    n_heads: int
    n_kv_heads: int


Condition = Callable[[ModelShape], bool]


@dataclass(frozen=True)
class Rule:
    """Tensors of `role` get `type` in the layers and models for which both predicates hold."""

    role: str
    type: str
    layers: Layers = lambda layer, n_layers: True
    when: Condition = lambda model: True


@dataclass(frozen=True)
class Mix:
    """One output type of llama-quantize; `file_type` is the number in the key `general.file_type`."""

    name: str
    file_type: int
    base: str
    output: str
    rules: tuple[Rule, ...] = ()


def _first_part(divisor: int) -> Layers:
    return lambda layer, n_layers: layer < n_layers // divisor


def _first(count: int) -> Layers:
    return lambda layer, n_layers: layer < count


def _more_bits(layer: int, n_layers: int) -> bool:
    """The first and last eighth, and every third layer between: 30 of M2.7's 62."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def _grouped(model: ModelShape) -> bool:
    """Four or more query heads share a key/value head, so attn_v is small and extra bits for it are cheap."""
    return model.n_kv_heads > 0 and model.n_heads // model.n_kv_heads >= 4


def _has_experts(model: ModelShape) -> bool:
    """llama-quantize looks for a third dimension above 1, which a stack of a single expert does not have."""
    return model.n_experts > 1


def _uniform(name: str, file_type: int, output: str) -> Mix:
    return Mix(name, file_type, base=name, output=output)


_Q6_IN_MORE_BITS = (Rule("attn_v", "Q6_K", _more_bits), Rule("ffn_down", "Q6_K", _more_bits))
_Q5_IN_FIRST_DOWN = (Rule("attn_v", "Q5_K", when=_grouped), Rule("ffn_down", "Q5_K", _first_part(8)))

_MIXES = (
    _uniform("F32", 0, output="F32"),
    _uniform("F16", 1, output="F16"),
    _uniform("BF16", 32, output="BF16"),
    _uniform("Q8_0", 7, output="Q8_0"),
    _uniform("Q6_K", 18, output="Q6_K"),
    _uniform("Q5_0", 8, output="Q6_K"),
    _uniform("Q5_1", 9, output="Q6_K"),
    _uniform("Q4_0", 2, output="Q6_K"),
    _uniform("Q4_1", 3, output="Q6_K"),
    Mix("Q5_K_M", 17, "Q5_K", "Q6_K", _Q6_IN_MORE_BITS),
    Mix("Q5_K_S", 16, "Q5_K", "Q6_K"),
    Mix("Q4_K_M", 15, "Q4_K", "Q6_K", _Q6_IN_MORE_BITS),
    Mix("Q4_K_S", 14, "Q4_K", "Q6_K", (Rule("attn_v", "Q5_K", _first(4)), Rule("ffn_down", "Q5_K", _first_part(8)))),
    Mix(
        "Q3_K_L", 13, "Q3_K", "Q6_K",
        (Rule("attn_v", "Q5_K"), Rule("attn_output", "Q5_K"), Rule("ffn_down", "Q5_K")),
    ),
    Mix(
        "Q3_K_M", 12, "Q3_K", "Q6_K",
        (
            Rule("attn_v", "Q5_K", _first(2)),
            Rule("attn_v", "Q4_K"),
            Rule("attn_output", "Q4_K"),
            Rule("ffn_down", "Q5_K", _first_part(16)),
            Rule("ffn_down", "Q4_K"),
        ),
    ),
    Mix("Q3_K_S", 11, "Q3_K", "Q6_K"),
    Mix(
        "Q2_K", 10, "Q2_K", "Q6_K",
        (
            Rule("attn_v", "Q4_K", when=_grouped),
            Rule("attn_v", "Q3_K"),
            Rule("attn_output", "Q3_K"),
            Rule("ffn_down", "Q3_K"),
        ),
    ),
    Mix("IQ4_NL", 25, "IQ4_NL", "Q6_K", _Q5_IN_FIRST_DOWN),
    Mix("IQ4_XS", 30, "IQ4_XS", "Q6_K", _Q5_IN_FIRST_DOWN),
    Mix("IQ3_S", 26, "IQ3_S", "Q6_K", (Rule("attn_v", "Q4_K", when=_grouped),)),
    Mix(
        "IQ3_M", 27, "IQ3_S", "Q6_K",
        (Rule("attn_v", "Q4_K"), Rule("attn_output", "Q4_K"), Rule("ffn_down", "Q4_K", _first_part(8))),
    ),
    Mix(
        "MXFP4_MOE", 38, "Q8_0", "Q8_0",
        tuple(Rule(role, "MXFP4", when=_has_experts) for role in ("ffn_gate", "ffn_up", "ffn_down")),
    ),
)  # fmt: skip

MIXES: dict[str, Mix] = {mix.name: mix for mix in _MIXES}
ALIASES = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M"}
MIXES_THAT_NEED_AN_IMATRIX = frozenset(
    {"Q2_K_S", "IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"}
)

# A tensor type is writable when some mix without an importance matrix uses it.
WRITABLE_TYPES = frozenset(
    [mix.base for mix in _MIXES] + [mix.output for mix in _MIXES] + [rule.type for mix in _MIXES for rule in mix.rules]
)
TYPES_THAT_NEED_AN_IMATRIX = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})

_BLOCK_TENSOR = re.compile(
    r"blk\.(?P<layer>\d+)\.(?P<role>attn_q|attn_k|attn_v|attn_output|ffn_gate|ffn_up|ffn_down)(_exps)?\.weight"
)


def mix_by_name(name: str) -> Mix:
    """The mix that llama-quantize calls `name`, in any case; aliases such as `q4_k` are understood."""
    wanted = name.upper()
    if wanted in MIXES_THAT_NEED_AN_IMATRIX:
        raise BadInput(f"type {name} needs an importance matrix, which quantkit cannot use yet; {_choices()}")
    mix = MIXES.get(ALIASES.get(wanted, wanted))
    if mix is None:
        near = difflib.get_close_matches(wanted, MIXES, n=1)
        hint = f"did you mean {near[0].lower()}? Or " if near else ""
        raise BadInput(f"unknown type {name!r}; {hint}{_choices()}")
    return mix


def _choices() -> str:
    return "choose one of " + ", ".join(mix.lower() for mix in MIXES)


def block_size(type_name: str) -> int:
    """How many values of a row share one block of this ggml type; a row length has to be a multiple of it."""
    return int(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]][0])


def is_quantizable(gguf_name: str, shape: tuple[int, ...]) -> bool:
    """Whether a mix or a recipe decides this tensor's type; norms, the router and its bias always stay F32.

    `shape` is in numpy order, [experts, rows, row length]; leading ones do not count as dimensions, as in ggml.
    """
    n_dims = len(shape) - next((i for i, size in enumerate(shape) if size > 1), len(shape))
    return (
        n_dims >= 2
        and gguf_name.endswith("weight")
        and "_norm.weight" not in gguf_name
        and "ffn_gate_inp.weight" not in gguf_name
    )


def mix_type(mix: Mix, gguf_name: str, shape: tuple[int, ...], model: ModelShape) -> str:
    """The ggml type name, such as `Q4_K`, that `mix` gives the tensor `gguf_name` of numpy shape `shape`.

    Raises BadInput for a layer the model does not have, and for models with exactly 8 experts.
    """
    if model.n_experts == 8:
        raise BadInput("the model has exactly 8 experts: llama-quantize has other mixes for that, not known here")
    if not is_quantizable(gguf_name, shape):
        return "F32"
    if gguf_name == "output.weight":
        return mix.output
    match = _BLOCK_TENSOR.fullmatch(gguf_name)
    if match is None:
        return mix.base
    layer = int(match["layer"])
    if layer >= model.n_layers:
        raise BadInput(f"tensor {gguf_name}: the model has only {model.n_layers} layers")
    for rule in mix.rules:
        if rule.role == match["role"] and rule.layers(layer, model.n_layers) and rule.when(model):
            return rule.type
    return mix.base

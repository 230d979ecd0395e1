"""The type mixes of llama-quantize for MiniMax-M2, as data: which ggml type every tensor of a GGUF file gets.

A mix is a base type, a type for `output.weight`, and rules per tensor role; the first rule that applies decides.
What the tables say is what llama-quantize (llama.cpp as in llama-cpp-python 0.3.36) does for architecture
`minimax-m2`, with an importance matrix and without; `tests/recipe/test_mixes.py` compares them with its recorded
decisions.

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
from quantkit.quantize.rows import TYPES_THAT_NEED_IMPORTANCE

Layers = Callable[[int, int], bool]
"""Does a rule apply to this layer (0-based) of so many layers?"""


@dataclass(frozen=True)
class ModelShape:
    """What a mix may depend on besides the tensor itself: the model, and whether an importance matrix is at hand."""

    n_layers: int
    n_experts: int
    n_heads: int
    n_kv_heads: int
    has_imatrix: bool = False


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
    """One output type of llama-quantize; `file_type` is the number in the key `general.file_type`.

    `embedding` is the type of `token_embd.weight` where that is not `base`. A tensor of one of the types in `weighted`
    is only made with the importance of its columns.
    """

    name: str
    file_type: int
    base: str
    output: str
    rules: tuple[Rule, ...] = ()
    embedding: str | None = None
    weighted: frozenset[str] = TYPES_THAT_NEED_IMPORTANCE

    @property
    def needs_imatrix(self) -> bool:
        """Whether some tensor of every model gets a type that cannot do without."""
        return not self.weighted.isdisjoint({self.base, *(rule.type for rule in self.rules)})


def _first_part(divisor: int) -> Layers:
    return lambda layer, n_layers: layer < n_layers // divisor


def _first(count: int) -> Layers:
    return lambda layer, n_layers: layer < count


def _middle(layer: int, n_layers: int) -> bool:
    """All but the first and last eighth."""
    return n_layers // 8 <= layer < 7 * n_layers // 8


def _more_bits(layer: int, n_layers: int) -> bool:
    """The first and last eighth, and every third layer between: 30 of M2.7's 62."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def _grouped(model: ModelShape) -> bool:
    """Four or more query heads share a key/value head, so attn_v is small and extra bits for it are cheap."""
    return model.n_kv_heads > 0 and model.n_heads // model.n_kv_heads >= 4


def _grouped_or_experts(model: ModelShape) -> bool:
    return _grouped(model) or model.n_experts >= 4


def _has_imatrix(model: ModelShape) -> bool:
    return model.has_imatrix


def _no_imatrix(model: ModelShape) -> bool:
    return not model.has_imatrix


def _has_experts(model: ModelShape) -> bool:
    """llama-quantize looks for a third dimension above 1, which a stack of a single expert does not have."""
    return model.n_experts > 1


def _uniform(name: str, file_type: int, output: str) -> Mix:
    return Mix(name, file_type, base=name, output=output)


_Q6_IN_MORE_BITS = (Rule("attn_v", "Q6_K", _more_bits), Rule("ffn_down", "Q6_K", _more_bits))
_Q5_IN_FIRST_DOWN = (Rule("attn_v", "Q5_K", when=_grouped), Rule("ffn_down", "Q5_K", _first_part(8), _no_imatrix))


def _low(name: str, file_type: int, base: str, stronger: str, attn_output: str | None) -> Mix:
    """Mixes of one and two bits: `stronger` in the embedding and in what suffers most."""
    rules = [
        Rule("attn_v", "Q4_K", when=_grouped_or_experts),
        Rule("attn_v", stronger),
        Rule("ffn_down", stronger, _first_part(8)),
    ]
    if attn_output is not None:
        rules.append(Rule("attn_output", attn_output))
    return Mix(name, file_type, base, "Q5_K", tuple(rules), embedding=stronger)


_MIXES = (
    _uniform("F32", 0, output="F32"),
    _uniform("F16", 1, output="F16"),
    _uniform("BF16", 32, output="BF16"),
    _uniform("Q8_0", 7, output="Q8_0"),
    _uniform("Q6_K", 18, output="Q6_K"),
    Mix("Q5_0", 8, "Q5_0", "Q6_K", (Rule("ffn_down", "Q5_1", _first_part(8), _has_imatrix),)),
    _uniform("Q5_1", 9, output="Q6_K"),
    Mix("Q4_0", 2, "Q4_0", "Q6_K", (Rule("ffn_down", "Q4_1", _first_part(8), _has_imatrix),)),
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
    Mix(
        "Q2_K_S", 21, "Q2_K", "Q6_K",
        (Rule("attn_v", "Q4_K", when=_grouped), Rule("ffn_down", "Q4_K", _first_part(8))),
        weighted=TYPES_THAT_NEED_IMPORTANCE | {"Q2_K"},
    ),
    Mix("IQ4_NL", 25, "IQ4_NL", "Q6_K", _Q5_IN_FIRST_DOWN),
    Mix("IQ4_XS", 30, "IQ4_XS", "Q6_K", _Q5_IN_FIRST_DOWN),
    Mix("IQ3_S", 26, "IQ3_S", "Q6_K", (Rule("attn_v", "Q4_K", when=_grouped),)),
    Mix(
        "IQ3_M", 27, "IQ3_S", "Q6_K",
        (Rule("attn_v", "Q4_K"), Rule("attn_output", "Q4_K"), Rule("ffn_down", "Q4_K", _first_part(8))),
    ),
    Mix(
        "IQ3_XS", 22, "IQ3_S", "Q6_K",
        (
            Rule("attn_v", "Q4_K", when=_grouped),
            Rule("attn_q", "IQ3_XXS"),
            Rule("attn_k", "IQ3_XXS"),
            Rule("ffn_gate", "IQ3_XXS", _middle),
            Rule("ffn_up", "IQ3_XXS", _middle),
        ),
    ),
    Mix(
        "IQ3_XXS", 23, "IQ3_XXS", "Q5_K",
        (
            Rule("attn_v", "Q4_K", when=_grouped),
            Rule("attn_q", "IQ2_S"),
            Rule("attn_k", "IQ2_S"),
            Rule("attn_output", "IQ3_S"),
        ),
        embedding="IQ3_S",
    ),
    _low("IQ2_M", 29, "IQ2_S", "IQ3_S", attn_output="IQ3_S"),
    _low("IQ2_S", 28, "IQ2_XS", "IQ3_S", attn_output="IQ3_S"),
    _low("IQ2_XS", 20, "IQ2_XS", "Q2_K", attn_output=None),
    _low("IQ2_XXS", 19, "IQ2_XXS", "Q2_K", attn_output=None),
    _low("IQ1_M", 31, "IQ1_M", "Q2_K", attn_output="IQ2_XXS"),
    _low("IQ1_S", 24, "IQ1_S", "Q2_K", attn_output="IQ2_XXS"),
    Mix(
        "MXFP4_MOE", 38, "Q8_0", "Q8_0",
        tuple(Rule(role, "MXFP4", when=_has_experts) for role in ("ffn_gate", "ffn_up", "ffn_down")),
    ),
)  # fmt: skip

MIXES: dict[str, Mix] = {mix.name: mix for mix in _MIXES}
ALIASES = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M"}

# A tensor type is writable when some mix uses it.
WRITABLE_TYPES = frozenset(
    [mix.base for mix in _MIXES] + [mix.output for mix in _MIXES] + [rule.type for mix in _MIXES for rule in mix.rules]
)

_BLOCK_TENSOR = re.compile(
    r"blk\.(?P<layer>\d+)\.(?P<role>attn_q|attn_k|attn_v|attn_output|ffn_gate|ffn_up|ffn_down)(_exps)?\.weight"
)


def mix_by_name(name: str) -> Mix:
    """The mix that llama-quantize calls `name`, in any case; aliases such as `q4_k` are understood."""
    wanted = name.upper()
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
    if gguf_name == "token_embd.weight":
        return mix.embedding or mix.base
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


def needs_importance(mix: Mix, gguf_name: str, type_name: str) -> bool:
    """Whether the tensor `gguf_name` cannot be made in `type_name` as part of `mix` without an importance matrix."""
    # No importance matrix has data on the embedding, hardly any on the output.
    outer = gguf_name in ("token_embd.weight", "output.weight")
    return type_name in (TYPES_THAT_NEED_IMPORTANCE if outer else mix.weighted)

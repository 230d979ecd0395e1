"""Checks of a GGUF's keys: architecture, dimensions, tokenizer, chat template, and what it says of its making."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from quantkit.audit.checks.sidecars import END_OF_TURN, template_problem
from quantkit.audit.findings import Check, Severity, listed
from quantkit.audit.gguf_model import GGUFModel
from quantkit.inspect.gguf import NEEDED_KEYS
from quantkit.model import minimax_m2
from quantkit.model.spec import Kind

# llama.cpp's number for sigmoid scores.
SIGMOID = 2
# Keys that say what the model is; without one llama.cpp stops or takes a default that is not MiniMax's.
NUMBERS = (
    "block_count",
    "context_length",
    "embedding_length",
    "expert_feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "expert_count",
    "expert_used_count",
)
TEMPLATE, EOS, TOKENS = "tokenizer.chat_template", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.tokens"
# Types that llama-quantize refuses to write without an importance matrix.
NEED_IMPORTANCE = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")
IMATRIX = "quantize.imatrix."


def _numbers(model: GGUFModel) -> Iterator[str]:
    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf

    wrong = [
        f"{model.architecture}.{key} is {model.number(key)!r}" for key in NUMBERS if not is_number(model.number(key))
    ]
    if model.layers is None and is_number(model.number("block_count")):
        wrong.append(f"{model.architecture}.block_count is {model.number('block_count')!r}")
    if wrong:
        yield f"{model.path}: {listed(wrong)}; a positive number is needed"


def _gating(model: GGUFModel) -> Iterator[str]:
    value = model.number("expert_gating_func")
    if value != SIGMOID:
        key = f"{model.architecture}.expert_gating_func"
        yield f"{model.path}: key {key} is {value}, MiniMax-M2's routers need {SIGMOID} (sigmoid)"


def _rope(model: GGUFModel) -> Iterator[str]:
    rotated, head = model.number("rope.dimension_count"), model.number("attention.key_length")
    if not isinstance(rotated, int) or not isinstance(head, int) or rotated * 2 != head:
        key = f"{model.architecture}.rope.dimension_count"
        yield f"{model.path}: key {key} is {rotated}; MiniMax-M2 rotates half of a head's {head}"


def _template_missing(model: GGUFModel) -> Iterator[str]:
    if not str(model.keys.get(TEMPLATE) or "").strip():
        yield f"{model.path}: key {TEMPLATE} is missing; {NEEDED_KEYS[TEMPLATE]}"


def _template_wrong(model: GGUFModel) -> Iterator[str]:
    template = str(model.keys.get(TEMPLATE) or "")
    problem = template_problem(template) if template.strip() else None
    if problem:
        yield f"{model.path}: key {TEMPLATE}: {problem}"


def _vocabulary(model: GGUFModel) -> Iterator[str]:
    if not isinstance(model.keys.get(TOKENS), list):
        yield f"{model.path}: key {TOKENS} is missing; {NEEDED_KEYS[TOKENS]}"


def _eos(model: GGUFModel) -> Iterator[str]:
    number, tokens = model.keys.get(EOS), model.keys.get(TOKENS)
    if not isinstance(number, int):
        yield f"{model.path}: key {EOS} is missing; {NEEDED_KEYS[EOS]}"
    elif isinstance(tokens, list):
        token = tokens[number] if 0 <= number < len(tokens) else None
        if token != END_OF_TURN:
            yield f"{model.path}: key {EOS} is {number}, the token {token!r}; a turn ends with {END_OF_TURN!r}"


def _pre(model: GGUFModel) -> Iterator[str]:
    value = model.keys.get("tokenizer.ggml.pre")
    if value != minimax_m2.GGUF_TOKENIZER_PRE:
        yield f"{model.path}: key tokenizer.ggml.pre is {value!r}, not {minimax_m2.GGUF_TOKENIZER_PRE!r}"


def _not_judged(model: GGUFModel) -> Iterator[str]:
    if model.keys and not model.is_judged:
        yield f"{model.path}: architecture {model.architecture!r}"


def _expected_entries(model: GGUFModel) -> int:
    """Matrices that llama-imatrix collects: those of the layers, the router among them or not."""
    kinds = (Kind.LINEAR, Kind.EXPERT)
    return (model.layers or 0) * sum(role.kind in kinds for role in minimax_m2.LAYER_ROLES)


def _importance(model: GGUFModel) -> Iterator[str]:
    stated = {name: model.keys.get(IMATRIX + name) for name in ("file", "dataset", "entries_count", "chunks_count")}
    said = [f"{name.removesuffix('_count')} {value}" for name, value in stated.items() if value is not None]
    if model.keys.get("quantkit.compensated"):
        said.append(f"compensated by quantkit, calibration {model.keys.get('quantkit.calibration')}")
    if said:
        yield f"{model.path}: made with calibration: {', '.join(said)}"


def _importance_thin(model: GGUFModel) -> Iterator[str]:
    entries = model.keys.get(IMATRIX + "entries_count")
    expected = _expected_entries(model)
    if isinstance(entries, int) and entries < expected:
        yield f"{model.path}: the importance matrix had {entries} entries, the model has {expected} matrices"


def _importance_none(model: GGUFModel) -> Iterator[str]:
    if any(key.startswith(IMATRIX) for key in model.keys) or model.keys.get("quantkit.compensated"):
        return
    needy = sorted({tensor.type for tensor in model.tensors.values()} & set(NEED_IMPORTANCE))
    told = f", though {', '.join(needy)} cannot be made without" if needy else ""
    yield f"{model.path}: no importance matrix is recorded{told}"


FAMILY = "convert it again from the original with a converter that knows MiniMax-M2"
CHECKS = (
    Check("gguf-dimensions", Severity.ERROR, _numbers, FAMILY),
    Check("gating-function", Severity.ERROR, _gating, FAMILY),
    Check("rope-dimensions", Severity.ERROR, _rope, FAMILY),
    Check("chat-template-missing", Severity.ERROR, _template_missing, "give --chat-template-file, or " + FAMILY),
    Check("chat-template-wrong", Severity.ERROR, _template_wrong, "give --chat-template-file with the original's"),
    Check("tokenizer-missing", Severity.ERROR, _vocabulary, FAMILY),
    Check("gguf-eos", Severity.ERROR, _eos,
          "generation would not stop at the end of a turn; llama.cpp's gguf_set_metadata.py can set it"),
    Check("tokenizer-pre", Severity.ERROR, _pre, "text would be split otherwise than in training; " + FAMILY),
    Check("importance-thin", Severity.WARNING, _importance_thin, "tensors without data were quantized as without it"),
    Check("calibration", Severity.NOTE, _importance, "as the file says"),
    Check("calibration-unrecorded", Severity.NOTE, _importance_none, "low bits gain most from one"),
)  # fmt: skip
NOT_JUDGED = (
    Check("not-judged", Severity.NOTE, _not_judged, f"only {minimax_m2.GGUF_ARCHITECTURE} is looked into"),
)  # fmt: skip

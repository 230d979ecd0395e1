"""Checks of the rules in a configuration: what vLLM builds quantized against what the file holds quantized."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quantkit.audit.findings import Check, Severity, listed
from quantkit.audit.folder import Folder
from quantkit.audit.names import OTHER, PLAIN, storage
from quantkit.audit.quantization import AWQ, FP8, PACKED
from quantkit.audit.vllm_rules import (
    CHECKPOINT_PARENT,
    VLLM_PARENT,
    Refused,
    Stored,
    Unit,
    builds_quantized,
    rule_names,
    units,
)

JUDGED = (*PACKED, FP8)


@dataclass(frozen=True)
class Outcome:
    """A unit of vLLM: how its matrices are stored, and whether it is built quantized, or why vLLM stops."""

    unit: Unit
    forms: frozenset[str]
    quantized: bool
    refused: str | None = None


@dataclass(frozen=True)
class Outcomes:
    """What becomes of every unit of `folder` whose matrices are there: in vLLM, and by the checkpoint's own names."""

    folder: Folder
    vllm: tuple[Outcome, ...]
    other: tuple[Outcome, ...]


def outcomes(folder: Folder) -> Outcomes:
    """Apply the rules of `folder`, by either name of the experts' parent."""
    return Outcomes(folder, tuple(_outcomes(folder, VLLM_PARENT)), tuple(_outcomes(folder, CHECKPOINT_PARENT)))


def _outcomes(folder: Folder, parent: str) -> Iterator[Outcome]:
    quantization, hparams = folder.quantization, folder.hparams
    if quantization is None or hparams is None or quantization.method not in JUDGED:
        return
    stored = Stored(folder.modules)
    for unit in units(folder.layers(), hparams.n_experts, parent):
        found = (storage(folder.modules.get(matrix, {})) for matrix in unit.matrices)
        forms = frozenset(form for form in found if form is not None)
        if not forms or OTHER in forms:
            continue
        try:
            yield Outcome(unit, forms, builds_quantized(quantization, unit, stored))
        except Refused as error:
            yield Outcome(unit, forms, False, str(error))


def _names(found: list[Outcome]) -> str:
    return listed([outcome.unit.name for outcome in found])


def _refused(outcomes: Outcomes) -> Iterator[str]:
    found = [outcome for outcome in outcomes.vllm if outcome.refused is not None]
    if found:
        yield f"vLLM stops at {_names(found)}: {found[0].refused}"


def _stored_float(outcomes: Outcomes) -> Iterator[str]:
    found = [outcome for outcome in outcomes.vllm if outcome.quantized and outcome.forms == {PLAIN}]
    if found:
        yield (
            f"{len(found)} modules are float in the file, but by the rules in config.json vLLM builds them quantized: "
            f"{_names(found)}"
        )


def _stored_packed(outcomes: Outcomes) -> Iterator[str]:
    found = [
        outcome
        for outcome in outcomes.vllm
        if not outcome.quantized and outcome.refused is None and PLAIN not in outcome.forms
    ]
    if found:
        yield (
            f"{len(found)} modules are quantized in the file, but by the rules in config.json vLLM builds them "
            f"unquantized: {_names(found)}"
        )


def _partly(outcomes: Outcomes) -> Iterator[str]:
    found = [outcome for outcome in outcomes.vllm if len(outcome.forms) > 1]
    if found and outcomes.folder.is_complete:
        forms = " and ".join(sorted(found[0].forms))
        yield f"{len(found)} modules that vLLM builds as one are stored in several forms ({forms}): {_names(found)}"


def _other_parent(outcomes: Outcomes) -> Iterator[str]:
    """SGLang keeps the checkpoint's name for the parent of experts."""
    pairs = zip(outcomes.vllm, outcomes.other, strict=True)
    found = [there for here, there in pairs if here.quantized != there.quantized and there.unit.is_experts]
    if found:
        yield f"the rules treat {_names(found)}, as SGLang and older vLLM call them, otherwise than vLLM's names"


def _no_rules(outcomes: Outcomes) -> Iterator[str]:
    quantization = outcomes.folder.quantization
    if quantization is not None and quantization.method == AWQ and not quantization.names("modules_to_not_convert"):
        yield f"{outcomes.folder.named(quantization.file)}: modules_to_not_convert is missing or empty"


def _idle(outcomes: Outcomes) -> Iterator[str]:
    folder, quantization = outcomes.folder, outcomes.folder.quantization
    if quantization is None or folder.hparams is None or quantization.method not in PACKED:
        return
    names = list(folder.modules)
    names += [unit.name for unit in units(folder.layers(), 0)]
    names += [f"model.layers.{layer}.mlp.{part}" for layer in folder.layers() for part in ("gate", "experts.0.w1")]
    idle = []
    for rule, matches in rule_names(quantization):
        try:
            if not any(matches(name) for name in names):
                idle.append(rule)
        except Refused as error:
            idle.append(f"{rule} ({error})")
    if idle:
        yield f"{len(idle)} rules match nothing: {listed(idle)}"


BY_NAME = (
    "name modules as vLLM does (model.layers.N.self_attn…, model.layers.N.mlp.experts) beside the checkpoint's names, "
    "such as re:.*\\.experts\\.\\d+\\.w[123]$ or self_attn"
)
CHECKS = (
    Check("rules-refused", Severity.ERROR, _refused, "give q, k and v, and w1, w2 and w3, one rule"),
    Check("not-ignored", Severity.ERROR, _stored_float, "add them to the rules for what stays unquantized: " + BY_NAME),
    Check("quantized-but-ignored", Severity.ERROR, _stored_packed, BY_NAME),
    Check("module-mixed", Severity.ERROR, _partly, "store q, k and v, and all experts of a layer, in one form"),
    Check("rules-other-runtimes", Severity.NOTE, _other_parent, "name both, mlp and block_sparse_moe"),
    Check("rules-missing", Severity.WARNING, _no_rules,
          'write ["self_attn", "block_sparse_moe.gate", ".mlp.gate", "lm_head"]: what runtimes guess differs'),
    Check("rule-idle", Severity.NOTE, _idle, "mend or remove them"),
)  # fmt: skip

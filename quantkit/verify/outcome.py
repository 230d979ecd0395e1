"""The report of a verification as one JSON object: verdict, figures, what they came from, what was not measured."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from quantkit import __version__
from quantkit.verify.capture_file import Capture
from quantkit.verify.compare import PREFIX, Comparison, flat_to_tree
from quantkit.verify.divergence.account import by_position, histogram, worst_places
from quantkit.verify.gate import Figure, Gate, Outcome, Verdict, judge, overall
from quantkit.verify.metrics import METRICS
from quantkit.verify.tool_calls.differences import differences
from quantkit.verify.tool_calls.provider_verifier import provider_verifier_figures

FORMAT = "quantkit report 1"
# Captured probability that differs from 1 by rounding alone.
WHOLE = 0.9999
EXIT_CODES = {Verdict.PASS: 0, Verdict.FAIL: 3, Verdict.INCONCLUSIVE: 4}


def build_report(
    reference: Capture,
    quantized: Capture,
    compared: Comparison,
    gate: Gate,
    *,
    layers: dict[str, Any] | None = None,
    engines: Sequence[dict[str, Any]] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything that report.json holds, in plain numbers, lists and texts; `layers` come from `layer_figures`."""
    figures = dict(compared.figures)
    if layers is not None:
        figures |= {f"layers.{name}": Figure(value) for name, value in layers["figures"].items()}
    outcomes = judge(gate, figures)
    verdict = overall(outcomes)
    report: dict[str, Any] = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "verdict": verdict.value,
        "reasons": _reasons(verdict, outcomes),
        "models": {"reference": _model(reference), "quantized": _model(quantized)},
        "gate": {"name": gate.name, "sha256": gate.sha256(), "checks": [_check(outcome) for outcome in outcomes]},
        "metrics": _metrics(compared, figures),
        "intervals": {
            name: asdict(spread)
            for name, spread in (compared.spreads | {name: one.spread for name, one in figures.items()}).items()
            if spread is not None and math.isfinite(spread.low)
        },
        "reference_metrics": flat_to_tree(_references(figures, own=True)),
        "noise": _references(figures, own=False),
        "not_measured": _not_measured(quantized, compared, outcomes),
        "notes": [*_bias(compared), *notes],
        "requests": {
            "sha256": compared.questions.sha256(),
            "count": len(compared.questions.requests),
            "loops": compared.questions.loops,
            "max_tokens": compared.questions.max_tokens,
        },
        "versions": {"quantkit": __version__, "reference": reference.about("versions")}
        | {"quantized": quantized.about("versions")},
    }
    if compared.texts is not None:
        report |= _texts(compared, reference)
    if compared.answers is not None:
        mine, theirs = compared.answers
        report["differences"] = differences(compared.questions.requests, mine, theirs)
        report["provider_verifier"] = provider_verifier_figures(compared.questions.requests, mine, theirs)
    if layers is not None:
        report["layers"] = layers["maps"]
    if engines:
        report["engines"] = list(engines)
    return report


def _model(capture: Capture) -> dict[str, Any]:
    identity, server = capture.about("identity"), capture.about("server") or {}
    facts = dict(identity["model"])
    return facts | {
        "engine": server.get("engine"),
        "engine_version": server.get("version"),
        "command": " ".join(server.get("command", [])),
        "hardware": (capture.about("versions") or {}).get("machine"),
        "served_as": capture.about("served_as"),
    }


def _check(outcome: Outcome) -> dict[str, Any]:
    one = outcome.figure
    spread = one.spread if one is not None and one.spread is not None and math.isfinite(one.spread.low) else None
    return {
        "metric": outcome.check.metric,
        "rule": outcome.check.rule(),
        "value": one.value if one is not None else None,
        "low": spread.low if spread is not None else None,
        "high": spread.high if spread is not None else None,
        "margin": outcome.margin,
        "noise": one.noise if one is not None else None,
        "reference": one.reference if one is not None else None,
        "verdict": outcome.verdict.value,
        "why": outcome.why,
    }


def _reasons(verdict: Verdict, outcomes: Sequence[Outcome]) -> list[str]:
    if verdict is Verdict.PASS:
        passed = sum(outcome.verdict is Verdict.PASS for outcome in outcomes)
        return [f"all {passed} checks that could be made passed"]
    named = [f"{outcome.check.metric}: {outcome.why}" for outcome in outcomes if outcome.verdict is verdict]
    return named or ["nothing that the gate asks for was measured"]


def _metrics(compared: Comparison, figures: dict[str, Figure]) -> dict[str, Any]:
    flat = dict(compared.values) | {name: one.value for name, one in figures.items()}
    tree: dict[str, Any] = flat_to_tree(flat)
    if compared.domains:
        tree["domains"] = {domain: flat_to_tree(values) for domain, values in compared.domains.items()}
    if compared.categories:
        tree.setdefault("tool_calls", {})["categories"] = compared.categories
    return tree


def _references(figures: dict[str, Figure], *, own: bool) -> dict[str, float]:
    """The reference's own figures, or what comparing it with itself gave."""
    return {
        name: one.reference
        for name, one in figures.items()
        if one.reference is not None and name in METRICS and METRICS[name].own is own
    }


def _not_measured(quantized: Capture, compared: Comparison, outcomes: Sequence[Outcome]) -> list[str]:
    missing = list(quantized.about("not_measured") or [])
    if compared.texts is None and not compared.by_program and not missing:
        missing.append("perplexity and divergence: no text was scored by both models")
    if compared.answers is None:
        missing.append("tool calls: no request was answered by both models")
    if not any(outcome.check.metric.startswith("layers.") and outcome.figure for outcome in outcomes):
        missing.append("layers: experts and routers are compared on texts, where both models' weights are here")
    names = [o.check.metric for o in outcomes if o.verdict is Verdict.SKIPPED and o.figure is None]
    alone = [name for name in names if name.startswith(PREFIX) and compared.answers is not None]
    return missing + [f"{name}: {METRICS[name].says}" for name in alone]


def _bias(compared: Comparison) -> list[str]:
    """What telling only the most probable tokens apart does to the divergence."""
    captured, mean = compared.values.get("captured_mass", 1.0), compared.values.get("kld.mean", 0.0)
    if not captured < WHOLE:
        return []
    return [
        f"mean KLD is a lower bound: the {compared.values['top']} most probable tokens per position were told apart, "
        f"all others are one; that is {captured:.1%} of the reference's probability. If the rest differs alike, the "
        f"mean is about {mean / captured:.4g}"
    ]


def _texts(compared: Comparison, reference: Capture) -> dict[str, Any]:
    texts = compared.texts
    assert texts is not None
    passages = [compared.questions.passages[number] for number in texts.numbers]
    return {
        "histogram": {"kld": histogram(texts.parts)},
        "by_position": by_position(texts.parts),
        "worst": worst_places(passages, texts.scores, texts.parts, _decoder(reference)),
        "texts": {"passages": len(passages), "tokens": sum(len(passage.ids) for passage in passages)},
    }


def _decoder(capture: Capture) -> Any:
    """Token ids to text with the tokenizer that the capture carries."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(capture.about("tokenizer")))
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)

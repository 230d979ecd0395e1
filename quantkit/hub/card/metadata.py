"""The YAML block of a card: what the Hub searches, links and tabulates by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from quantkit.hub.card.facts import INT4, QuantFacts
from quantkit.hub.card.licence import License

RELATION = "quantized"
PIPELINE = "text-generation"
# Dotted name in the report -> identifier of the metric and what it is called, of texts and of requests.
ON_TEXTS = {
    "ppl.quantized": ("perplexity", "Perplexity"),
    "ppl.reference": ("perplexity_reference", "Perplexity of the reference"),
    "ppl.ratio": ("perplexity_ratio", "Perplexity over the reference's"),
    "kld.mean": ("kl_divergence", "Mean KL divergence from the reference, nats"),
    "kld.p999": ("kl_divergence_p999", "99.9 % quantile of the KL divergence, nats"),
    "same_top1": ("same_top1", "Positions where both find the same token most probable"),
}
ON_REQUESTS = {
    "tool_calls.trigger_f1": ("tool_call_trigger_f1", "F1 of answering with calls, the reference as truth"),
    "tool_calls.match_rate": ("tool_call_match_rate", "Calls where one is wanted and none where none is"),
    "tool_calls.schema_accuracy": ("tool_call_schema_accuracy", "Turns with calls in which every call is valid"),
    "tool_calls.tool_name_match": ("tool_call_name_match", "Same tools called, where both call"),
    "tool_calls.arg_match": ("tool_call_argument_match", "Same arguments, where both call"),
}


def card_metadata(facts: Sequence[QuantFacts], repo: str, base_model: str | None, license: License) -> ModelCardData:
    """The metadata of a card for `repo`, whose owner is said to have quantized."""
    owner, _, name = repo.partition("/")
    results = [result for one in facts for result in _results(one)]
    return ModelCardData(
        base_model=base_model,
        base_model_relation=RELATION,
        quantized_by=owner,
        library_name="vllm" if facts[0].kind == INT4 else "gguf",
        pipeline_tag=PIPELINE,
        tags=_tags(facts),
        license=license.identifier,
        license_name=license.name,
        license_link=license.metadata().get("license_link"),
        model_name=name,
        eval_results=results or None,
    )


def parse_metadata(card: str) -> tuple[dict[str, Any] | None, str]:
    """The metadata of a card as the client reads it; or None, and why it cannot."""
    try:
        data: dict[str, Any] = ModelCard(card).data.to_dict()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        return None, f"the metadata cannot be read ({' '.join(str(error).split())})"
    return data, ""


def _tags(facts: Sequence[QuantFacts]) -> list[str]:
    tags = ["minimax_m2", "quantkit", "moe", "conversational"]
    if facts[0].kind == INT4:
        loads = facts[0].loads.split()[0].lower()
        return [*tags, loads, f"int{facts[0].settings['bits']}", "vllm", "sglang"]
    tags += ["gguf", "llama.cpp"]
    return tags + (["imatrix"] if any(one.imatrix is not None for one in facts) else [])


def _results(facts: QuantFacts) -> list[EvalResult]:
    """What was measured, in the report's own numbers; figures that were not finite are left to the text."""
    if facts.report is None:
        return []
    groups = (
        ("quantkit-texts", "quantkit verify, texts", ON_TEXTS),
        ("quantkit-requests", "quantkit verify, requests with tools", ON_REQUESTS),
    )
    return [
        EvalResult(
            task_type=PIPELINE,
            task_name=facts.name,
            dataset_type=dataset,
            dataset_name=title,
            dataset_config=facts.name,
            metric_type=metric,
            metric_name=name,
            metric_value=value,
        )
        for dataset, title, metrics in groups
        for key, (metric, name) in metrics.items()
        if (value := facts.report.metrics.get(key)) is not None
    ]

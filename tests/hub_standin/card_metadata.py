"""What the Hub's check of a card's metadata looks at."""

from __future__ import annotations

import re
from typing import Any

import yaml

# The identifiers that the Hub's documentation lists for `license`.
LICENSES = frozenset(
    """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr
    mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl
    lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    grok2-community gemma unknown other""".split()
)
RELATIONS = frozenset({"adapter", "merge", "quantized", "finetune"})
MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LICENSE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|$)", re.DOTALL)


def check_card(content: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of a README.md."""
    found = FRONT_MATTER.match(content)
    if found is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        metadata = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"the metadata is not YAML: {error}"], []
    if not metadata:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(metadata, dict):
        return ["the metadata is not a mapping"], []
    checks = (check_license, check_base_model, check_lists, check_results)
    return [text for check in checks for text in check(metadata)], []


def check_license(metadata: dict[str, Any]) -> list[str]:
    errors = []
    licenses = metadata.get("license", [])
    for name in licenses if isinstance(licenses, list) else [licenses]:
        if name not in LICENSES:
            errors.append(f'"license" must be one of the known identifiers, not {name!r}')
    if metadata.get("license") == "other":
        if not LICENSE_NAME.fullmatch(str(metadata.get("license_name", ""))):
            errors.append('"license_name" in lower case is required when "license" is "other"')
        link = metadata.get("license_link")
        if link not in ("LICENSE", "LICENSE.md") and not str(link).startswith(("http://", "https://")):
            errors.append('"license_link" must be LICENSE, LICENSE.md or a URL when "license" is "other"')
    return errors


def check_base_model(metadata: dict[str, Any]) -> list[str]:
    bases = metadata.get("base_model", [])
    bases = bases if isinstance(bases, list) else [bases]
    errors = [f'"base_model" {name!r} is not a model id' for name in bases if not MODEL_ID.fullmatch(str(name))]
    relation = metadata.get("base_model_relation")
    if relation is not None and relation not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {", ".join(sorted(RELATIONS))}')
    return errors


def check_lists(metadata: dict[str, Any]) -> list[str]:
    errors = []
    for key in ("tags", "language", "datasets", "metrics"):
        value = metadata.get(key, [])
        if not all(isinstance(item, str) and item for item in (value if isinstance(value, list) else [value])):
            errors.append(f'"{key}" must be a list of texts')
    for key in ("pipeline_tag", "library_name", "quantized_by", "license_name", "license_link"):
        if not isinstance(metadata.get(key, ""), str):
            errors.append(f'"{key}" must be a text')
    return errors


def check_results(metadata: dict[str, Any]) -> list[str]:
    """The shape of model-index: the client's own reader must take it, and values must be what the Hub shows."""
    if "model-index" not in metadata:
        return []
    from huggingface_hub.repocard_data import model_index_to_eval_results

    try:
        _, results = model_index_to_eval_results(metadata["model-index"])
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        return [f'"model-index" has another shape than the Hub\'s: {type(error).__name__} {error}']
    errors = []
    for result in results:
        texts = (result.task_type, result.dataset_type, result.dataset_name, result.metric_type)
        if not all(isinstance(text, str) and text for text in texts):
            errors.append('"model-index": task type, dataset type and name, and metric type must be texts')
        if result.metric_value is None or (
            isinstance(result.metric_value, float) and not -1e300 < result.metric_value < 1e300
        ):
            errors.append(f'"model-index": the value of {result.metric_type!r} is no finite number')
    return errors

"""Checks of a finished card: what the Hub's client validates, the fields that must be there, nothing that must not."""

from __future__ import annotations

import re
from typing import Any

from quantkit.hub.card.metadata import PIPELINE, RELATION, parse_metadata
from quantkit.hub.client import redact

MANDATORY = ("base_model", "base_model_relation", "quantized_by", "license", "pipeline_tag", "library_name", "tags")
_REMEDIES = {
    "base_model": "; quantize from the Hub, or from a folder named after the model, as in MiniMax-M2.7",
}
_FIXED = {"base_model_relation": RELATION, "pipeline_tag": PIPELINE}
# The Hub does not render longer files.
MOST_BYTES = 2_000_000
_HOME = re.compile(r"(?<![\w:/.])/(?:home|root|tmp|Users|mnt|var|srv|data|workspace)/[^\s`)]*")


def check_card(text: str) -> list[str]:
    """What is wrong with a README.md; an empty list where nothing is."""
    findings = []
    if not text.startswith("---\n"):
        findings.append("README.md: does not begin with its metadata")
    if "\r" in text:
        findings.append("README.md: has other line ends than \\n")
    if len(text.encode(errors="replace")) > MOST_BYTES:
        findings.append(f"README.md: is longer than {MOST_BYTES:,} bytes, which the Hub does not show")
    if redact(text) != text:
        findings.append("README.md: holds a token or a signed address")
    for path in sorted(set(_HOME.findall(text))):
        findings.append(f"README.md: holds a path of this machine ({path})")
    data, trouble = parse_metadata(text)
    if data is None:
        return [*findings, f"README.md: {trouble}"]
    findings += [f"README.md: the metadata lacks {field}{_REMEDIES.get(field, '')}" for field in _lacking(data)]
    findings += [
        f"README.md: the metadata has {field}: {data[field]}, it must be {value}"
        for field, value in _FIXED.items()
        if data.get(field) not in (None, value)
    ]
    if data.get("license") == "other" and not (data.get("license_name") and data.get("license_link")):
        findings.append("README.md: the metadata has license: other without license_name and license_link")
    return findings


def _lacking(data: dict[str, Any]) -> list[str]:
    return [field for field in MANDATORY if not data.get(field)]

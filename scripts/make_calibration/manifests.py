"""The shipped manifests as data, and their YAML."""

# ruff: noqa: E501 (sentences and tables, one per line)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_PERMISSIVE = "MIT, BSD, Apache-2.0, ISC (per row)"
_OWN = "Apache-2.0"
# What each file is: domain, licence, origin.
FILES = {
    "code": ("code", _PERMISSIVE, "files and patches of the packages that every row names, from PyPI and npm"),
    "sessions": (
        "tools",
        f"Apache-2.0; file contents {_PERMISSIVE}",
        "agent sessions generated for quantkit over real files of the packages that the rows name: bugs planted and "
        "fixed, upstream changes ported, code explained",
    ),
    "tools": ("tools", "Apache-2.0", "dialogues generated for quantkit over tool schemas and unscored requests of bfcl-eval"),
    "reasoning": ("reasoning", _OWN, "problems generated for quantkit; every step is computed"),
    "multilingual": ("multilingual", _OWN, "written for quantkit, 22 languages"),
    "translations": ("multilingual", "MIT", "messages of kolibri and their translations into 28 languages"),
    "chat": ("chat", _OWN, "written for quantkit"),
    "answers": ("chat", _PERMISSIVE, "questions that the documentation of packages asks and answers; every row names its package"),
    "smoke": ("mixed", _PERMISSIVE, "a few short rows of all files of the corpus agentic"),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A manifest to write: its sources with their shares in percent."""

    name: str
    description: str
    samples: int
    sequence_length: int
    shares: dict[str, float]


MANIFESTS = (
    Plan(
        "agentic",
        "code, agent sessions and tool calls with thinking, reasoning, many languages, chat",
        480,
        2048,
        {"code": 50, "sessions": 16, "tools": 9, "reasoning": 10, "multilingual": 0.6, "translations": 9.4, "chat": 0.4, "answers": 4.6},
    ),
    Plan("code", "source files in 25 languages, patches, and agent sessions over code", 256, 2048, {"code": 75, "sessions": 25}),
    Plan("smoke", "a little of everything, for tests and first tries; too small for real calibration", 8, 512, {"smoke": 100}),
)  # fmt: skip


def write_manifest(folder: Path, plan: Plan, seed: int, files: dict[str, dict[str, Any]]) -> None:
    """Write `plan` as YAML into `folder`."""
    sources = []
    for name, share in plan.shares.items():
        domain, licence, origin = FILES[name]
        about = {"name": name, "domain": domain, "share": share, "licence": licence, "origin": origin}
        sources.append(about | files[name])
    data = {
        "name": plan.name,
        "description": plan.description,
        "seed": seed,
        "samples": plan.samples,
        "sequence_length": plan.sequence_length,
        "sources": sources,
    }
    text = "# Written by scripts/make_calibration; see its packages.py for names, versions and licences.\n"
    text += yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)
    (folder / f"{plan.name}.yaml").write_text(text, encoding="utf-8")

"""Quantizations of the fixture model to publish, and reports about them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imatrix_files
from hub_standin import TestHub

from quantkit.cli.app import app

MODEL = "MiniMax-M2.7"
INT4_REPO, GGUF_REPO = "me/MiniMax-M2.7-RTN", "me/MiniMax-M2.7-GGUF"
MINIMAX_LICENCE = """NON-COMMERCIAL LICENSE

Copyright (c) 2026 MiniMax

A text for tests of MiniMax-M2.7's licence.
"""


@dataclass(frozen=True)
class Made:
    """A checkpoint folder, and a folder with two GGUFs and a third one in parts."""

    int4: Path
    ggufs: Path

    @property
    def imatrix(self) -> Path:
        """The importance matrix that Q4_K_M was made with."""
        return self.ggufs.with_name("importance.gguf")

    @property
    def q8_0(self) -> Path:
        return self.ggufs / f"{MODEL}-Q8_0.gguf"

    @property
    def q4_k_m(self) -> Path:
        return self.ggufs / f"{MODEL}-Q4_K_M.gguf"

    @property
    def parts(self) -> list[Path]:
        return sorted(self.ggufs.glob(f"{MODEL}-Q6_K-0*.gguf"))


def make(folder: Path, tiny_m2: Path) -> Made:
    """Quantize the fixture under the model's name."""
    source = folder / MODEL
    shutil.copytree(tiny_m2, source, ignore=shutil.ignore_patterns("heldout"))
    made = Made(folder / f"{MODEL}-RTN", folder / "ggufs")
    made.ggufs.mkdir()
    shutil.copyfile(source / "LICENSE", made.ggufs / "LICENSE")
    run("rtn", source, "-o", made.int4)
    imatrix_files.for_checkpoint(folder / "importance.gguf", source)
    run("gguf", "q8_0,q4_k_m", source, "-o", made.ggufs / f"{MODEL}.gguf", "--imatrix", folder / "importance.gguf")
    run("gguf", "q6_k", source, "-o", made.ggufs / f"{MODEL}-Q6_K.gguf", "--split-max-size", "6M")
    return made


def run(*arguments: object) -> None:
    app([*map(str, arguments), "--json"], standalone_mode=False)


def write_report(folder: Path, model: Path, verdict: str = "PASS", kld: float = 0.001) -> Path:
    """What `quantkit verify` would have written about `model`."""
    from quantkit.verify.models import describe_model
    from quantkit.verify.outcome import FORMAT

    side = {"engine": "streamed", "engine_version": "1", "command": "", "hardware": "2 cores", "served_as": None}
    reference = {"name": MODEL, "kind": "FP8 checkpoint", "weights_fingerprint": "0"} | side
    report: dict[str, Any] = {
        "format": FORMAT,
        "created": "2026-11-01T00:00:00+00:00",
        "verdict": verdict,
        "reasons": [f"kld.mean: {kld}"],
        "models": {"reference": reference, "quantized": describe_model(model).as_json() | side},
        "gate": {"name": "default", "sha256": "0", "checks": []},
        "metrics": {"ppl": 5.0, "kld": {"mean": kld, "p999": 10 * kld}, "same_top1": 0.98},
        "intervals": {},
        "reference_metrics": {"ppl": 4.9},
        "noise": {},
        "not_measured": ["tool calls: no request was answered by both models"],
        "notes": [],
        "requests": {"sha256": "0", "count": 0, "loops": 0, "max_tokens": 0},
        "versions": {"quantkit": "0.1.0", "reference": {}, "quantized": {}},
    }
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def writes(hub: TestHub) -> list[str]:
    """The requests that change something on the Hub, or try to."""
    asks = r"^(GET|HEAD) |^POST .*/(paths-info|validate-yaml|preupload)"
    reading = hub.requests(asks)
    return [f"{one.method} {one.path}" for one in hub.log if one not in reading]

"""FP8 to AWQ and GPTQ on real vLLM servers, from one capture of the original; and a server with the wrong parser."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from verdicts import all_finite, failed

Report = dict[str, Any]
BUDGET = ("--calibration", "smoke", "--samples", "16", "--sequence-length", "256")


def quantkit(*arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "quantkit", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def reference(tiny_m2: Path, texts: list[str], requests: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The FP8 original, measured once."""
    out = tmp_path_factory.mktemp("vllm") / "fp8.capture"
    quantkit("verify", "capture", tiny_m2, "-o", out, "--engine", "vllm", *texts, *requests)
    return out


@pytest.mark.parametrize("method", [pytest.param("awq", marks=pytest.mark.full), "gptq"])
def test_int4_passes(
    method: str, tiny_m2: Path, reference: Path, verify: Callable[..., tuple[int, Report]], tmp_path: Path
) -> None:
    quantkit(method, tiny_m2, "-o", tmp_path / method, *BUDGET)
    code, report = verify(tmp_path / method, "--reference", reference)
    assert (code, report["verdict"]) == (0, "PASS"), report["reasons"]
    assert report["requests"]["loops"] == 1
    metrics = report["metrics"]
    assert all_finite(metrics)
    assert 0 < metrics["kld"]["mean"] < 0.02
    assert metrics["ppl"]["ratio"] == pytest.approx(1, abs=0.02)
    assert metrics["tool_calls"]["expected_exact"] > 0.9
    assert set(metrics["domains"]) == {"code", "tools"}
    assert report["noise"]["kld.mean"] < 0.001


def test_hermes_parser_is_caught_by_the_calls_it_loses(
    tiny_m2: Path, reference: Path, verify: Callable[..., tuple[int, Report]]
) -> None:
    """The same weights: the answers hold the same text, but no call is parsed."""
    arguments = ("--engine", "vllm", "--server-args", "--tool-call-parser hermes")
    code, report = verify(tiny_m2, "--reference", reference, *arguments)
    assert (code, report["verdict"]) == (3, "FAIL")
    assert {"tool_calls.trigger_f1", "tool_calls.match_rate", "tool_calls.parser_fail"} <= failed(report)
    assert report["metrics"]["kld"]["mean"] < 0.001
    assert not failed(report) & {"kld.mean", "ppl.ratio", "same_top1"}

"""Compensated files agree with FP8 on tool calls no less than files with an importance matrix of the same tokens.

All on llama.cpp's server, FP8 as a BF16 GGUF. Its parser takes one call per answer, on all sides alike.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from held_out_requests import write_requests
from quantkit_program import run_quantkit
from scipy.stats import binomtest

from quantkit.verify.capture_file import FIRST, GREEDY, open_capture
from quantkit.verify.records import Answer
from quantkit.verify.tool_calls.arguments import same_calls

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]

Report = dict[str, Any]
MIXES = ("q4_k_m", "q2_k")
METHODS = ("imatrix", "compensated")
SAMPLES, LENGTH = 64, 512
REQUESTS = {"single": 96, "second": 41, "follow_up": 26, "parallel": 43}  # all there are
ASKED = ("--loops", "1", "--max-tokens", "160")
# Greedy answers against FP8's, one by one.
AGREEMENT = ("trigger_f1", "tool_name_match", "arg_exact", "arg_match")
# First answers, greedy and drawn, against what is known to be right.
RIGHT = ("match_rate", "expected_exact")
SURPRISING = 0.025  # probability of a difference like this one between equals


@pytest.fixture(scope="module")
def files(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """By mix and method, all of the same tokens."""
    folder = tmp_path_factory.mktemp("files")
    tokens, matrix = folder / "tokens.safetensors", folder / "imatrix.gguf"
    size = ("--samples", SAMPLES, "--sequence-length", LENGTH)
    run_quantkit("calibration", "build", "agentic", "--tokenizer", tiny_m2, "-o", tokens, *size)
    run_quantkit("imatrix", tiny_m2, "-o", matrix, "--tokens", tokens)
    guides = {"imatrix": ("--imatrix", matrix), "compensated": ("--compensate", "--tokens", tokens)}
    found = {}
    for mix in MIXES:
        for method in METHODS:
            found[mix, method] = folder / f"{method}-{mix}.gguf"
            run_quantkit("gguf", mix, tiny_m2, "-o", found[mix, method], *guides[method])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verified")


@pytest.fixture(scope="module")
def reference(tiny_m2: Path, folder: Path) -> Path:
    """The capture of FP8."""
    original, out = folder / "bf16.gguf", folder / "fp8.capture"
    requests = write_requests(folder / "requests.jsonl", REQUESTS)
    run_quantkit("gguf", "bf16", tiny_m2, "-o", original)
    asked = ("--text", "none", "--requests", requests, *ASKED)
    run_quantkit("verify", "capture", original, "-o", out, "--tokenizer", tiny_m2, *asked)
    return out


@pytest.fixture(scope="module")
def captures(files: dict[tuple[str, str], Path], reference: Path, folder: Path) -> dict[tuple[str, str], Path]:
    """The capture of each file, the report of `quantkit verify` beside it."""
    for path in files.values():
        run_quantkit("verify", path, "--reference", reference, "-o", folder / path.stem, codes=(0, 3, 4))
    return {key: folder / path.stem / "quantized.capture" for key, path in files.items()}


@pytest.fixture(scope="module")
def reports(captures: dict[tuple[str, str], Path]) -> dict[tuple[str, str], Report]:
    found = {key: json.loads(path.with_name("report.json").read_text()) for key, path in captures.items()}
    print()
    for name in (*AGREEMENT, *RIGHT):
        figures = {" ".join(key): round(rates(report)[name], 4) for key, report in found.items()}
        print(f"{name}: {figures}")
    return found


def rates(report: Report) -> dict[str, float]:
    return report["metrics"]["tool_calls"]


def least(report: Report, name: str) -> float:
    """The lower end of a figure's 95 % interval, no higher than 1 - 3 / n: more is not known after n faultless ones."""
    spread: dict[str, float] = report["intervals"][f"tool_calls.{name}"]
    return min(spread["low"], 1 - 3 / sum(REQUESTS.values()))


def greedy_answers(path: Path) -> dict[tuple[str, int], Answer]:
    """By request and step."""
    with open_capture(path) as capture:
        answers = list(capture.answers(FIRST))
    return {(name, step): answer for loop, name, step, answer in answers if loop == GREEDY}


@pytest.mark.parametrize("name", [*AGREEMENT, *RIGHT])
@pytest.mark.parametrize("mix", MIXES)
def test_no_lower_than_with_the_importance_matrix(mix: str, name: str, reports: dict[tuple[str, str], Report]) -> None:
    """No lower within what the choice of requests decides."""
    assert rates(reports[mix, "compensated"])[name] >= least(reports[mix, "imatrix"], name)


def test_no_fewer_answers_have_the_calls_of_fp8(captures: dict[tuple[str, str], Path], reference: Path) -> None:
    """Greedy ones, of all types together; where just one of two methods agrees, a sign test says which is better."""
    expected = greedy_answers(reference)
    better = worse = 0
    for mix in MIXES:
        theirs, ours = (
            {key: same_calls(answer.calls, expected[key].calls) for key, answer in greedy_answers(path).items()}
            for path in (captures[mix, method] for method in METHODS)
        )
        assert theirs.keys() == ours.keys() == expected.keys()
        print(
            f"\n{mix}: of {len(expected)} greedy answers {sum(theirs.values())} {sum(ours.values())} have FP8's calls"
        )
        better += sum(ours[key] and not theirs[key] for key in expected)
        worse += sum(theirs[key] and not ours[key] for key in expected)
    print(f"only the compensated file agrees: {better}, only the other one: {worse}")
    assert worse == 0 or binomtest(worse, better + worse, alternative="greater").pvalue > SURPRISING


def test_every_request_was_answered_to_the_same_prompts(reports: dict[tuple[str, str], Report]) -> None:
    for report in reports.values():
        assert rates(report)["query_success"] == 1
        assert rates(report)["prompt_tokens_equal"] == 1

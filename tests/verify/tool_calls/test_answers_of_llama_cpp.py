"""The whole of it on llama.cpp's real server: the fixture as Q8_0 against itself and against Q2_K."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from held_out_requests import looping_requests, single_step_requests

from quantkit.recipe.recipe import recipe_from_options
from quantkit.run.gguf.convert import write_gguf
from quantkit.run.gguf.plan import DEFAULT_SPLIT
from quantkit.verify.capture_file import AGAIN, FIRST, begin_capture
from quantkit.verify.client import Client
from quantkit.verify.records import Answer, Request
from quantkit.verify.servers.start import ServerSettings, running
from quantkit.verify.tool_calls.metrics import tool_call_rates
from quantkit.verify.tool_calls.raw_text import parse_raw
from quantkit.verify.tool_calls.run import capture_answers

HOW: dict[str, Any] = {"limit": 120, "concurrency": 2, "quiet": True}
REQUESTS = [*single_step_requests("single", 4), *single_step_requests("follow_up", 1), *looping_requests(2)]
Answers = dict[tuple[int, str, int], Answer]
# Threads of ggml wait for each other by spinning, which takes a busy machine many times as long.
SETTINGS = ServerSettings(2048, concurrency=2, top=1, arguments=("--threads", "1", "--threads-batch", "1"))


@pytest.fixture(scope="module")
def captured(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answers]:
    """What Q8_0 answered, twice, and what Q2_K answered on the first history."""
    folder = tmp_path_factory.mktemp("captured")
    with begin_capture(folder / "q8_0", {}) as reference, begin_capture(folder / "q2_k", {}) as quantized:
        with served(tiny_m2, "q8_0", folder) as client:
            capture_answers(client, REQUESTS, reference, FIRST, 1, history=None, **HOW)
            capture_answers(client, REQUESTS, reference, AGAIN, 0, history=reference, **HOW)
        with served(tiny_m2, "q2_k", folder) as client:
            capture_answers(client, REQUESTS, quantized, FIRST, 0, history=reference, **HOW)
        runs = {"q8_0": (reference, FIRST), AGAIN: (reference, AGAIN), "q2_k": (quantized, FIRST)}
        return {
            name: {(loop, request, step): answer for loop, request, step, answer in capture.answers(run)}
            for name, (capture, run) in runs.items()
        }


@contextmanager
def served(checkpoint: Path, mix: str, folder: Path) -> Iterator[Client]:
    recipe, out = recipe_from_options(mix), folder / f"{mix}.gguf"
    (model,) = write_gguf(checkpoint, out, recipe, split_max_size=DEFAULT_SPLIT, threads=1, quiet=True).outputs
    with running("llama.cpp", model, folder / mix, SETTINGS) as server, Client(server, retries=1) as client:
        yield client


def by_id(name: str) -> Request:
    return next(request for request in REQUESTS if request.id == name)


def test_calls_come_back_as_expected(captured: dict[str, Answers]) -> None:
    rates = tool_call_rates(REQUESTS[:5], captured["q8_0"], captured["q8_0"])
    assert rates["expected_exact"].value >= 0.6
    assert rates["query_success"].value == 1
    assert rates["stream_parity"].value == 1
    assert rates["stream_parity"].chances.sum() == 5


def test_raw_text_shows_the_special_tokens_and_parses_to_the_servers_own_calls(captured: dict[str, Answers]) -> None:
    calling = {key: answer for key, answer in captured["q8_0"].items() if answer.calls}
    assert len(calling) >= 8
    for (_, name, _), answer in calling.items():
        assert answer.raw is not None
        raw = parse_raw(answer.raw, by_id(name.removesuffix("#stripped")).tools)
        assert "</think>" in answer.raw
        assert raw.thinking is not None
        assert (raw.thinking.strip(), raw.problems) == (answer.reasoning, ())
        theirs = [(call.name, json.loads(call.arguments)) for call in answer.calls]
        assert [(call.name, json.loads(call.arguments)) for call in raw.calls] == theirs


def test_loops_run_to_their_end_and_the_server_takes_reasoning_back(captured: dict[str, Answers]) -> None:
    rates = tool_call_rates(REQUESTS, captured["q8_0"], captured["q8_0"])
    assert rates["interleaved_turns"].value >= 2
    assert rates["interleaved_thinking"].value == 1
    assert rates["reasoning_echoed"].chances.sum() == 2
    assert rates["reasoning_echoed"].value == 1


def test_the_same_model_again_says_the_same_and_two_bits_do_not(
    captured: dict[str, Answers],
) -> None:
    again = tool_call_rates(REQUESTS, captured["q8_0"], captured[AGAIN])
    worse = tool_call_rates(REQUESTS, captured["q8_0"], captured["q2_k"])
    for rates in (again, worse):
        assert rates["prompt_tokens_equal"].value == 1
        assert rates["prompt_tokens_equal"].chances.sum() == len([key for key in captured["q8_0"] if key[0] == 0])
    assert again["arg_exact"].value >= worse["arg_exact"].value
    assert again["trigger_f1"].value >= 0.9
    assert captured["q2_k"] != captured[AGAIN]

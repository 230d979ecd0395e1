"""vLLM's real server: raw text by its token ids, streams, and reasoning that it takes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from held_out_requests import looping_requests, single_step_requests

from quantkit.verify.capture_file import FIRST, begin_capture
from quantkit.verify.client import Client
from quantkit.verify.servers.start import ServerSettings, running
from quantkit.verify.tool_calls.metrics import tool_call_rates
from quantkit.verify.tool_calls.raw_text import parse_raw
from quantkit.verify.tool_calls.run import capture_answers


@pytest.mark.full  # whole verifications ask it too
def test_answers_of_vllm(tiny_m2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the model is small and the machine shared
    requests = [*single_step_requests("single", 2), *single_step_requests("parallel", 1), *looping_requests(1)]
    # The fixture's template writes content that is a list of parts as Python does; the real one takes both.
    settings = ServerSettings(2048, concurrency=2, top=1)
    with (
        begin_capture(tmp_path / "capture", {}) as capture,
        running("vllm", tiny_m2, tmp_path / "server", settings) as server,
        Client(server, retries=1) as client,
    ):
        capture_answers(client, requests, capture, FIRST, 1, limit=120, concurrency=2, history=None, quiet=True)
        found = {(loop, name, step): answer for loop, name, step, answer in capture.answers(FIRST)}
    tools = {request.id: request.tools for request in requests}
    calling = {key: answer for key, answer in found.items() if answer.calls}
    assert len(calling) >= 4
    for (_, name, _), answer in calling.items():
        assert answer.raw is not None
        raw = parse_raw(answer.raw, tools[name.removesuffix("#stripped")])
        assert raw.thinking is not None
        assert (raw.thinking.strip(), raw.problems) == (answer.reasoning, ())
        theirs = [(call.name, json.loads(call.arguments)) for call in answer.calls]
        assert [(call.name, json.loads(call.arguments)) for call in raw.calls] == theirs
    rates = tool_call_rates(requests, found, found)
    assert rates["query_success"].value == 1
    assert rates["stream_parity"].value == 1
    assert rates["stream_parity"].chances.sum() == 3
    assert rates["think_integrity"].value == 1
    assert rates["reasoning_echoed"].value == 1

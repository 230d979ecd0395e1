"""Asking all requests of a server: loops, histories, seeds, what is kept, and what ends a run."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answer_cases import TOOLS, request
from scripted_chat import ScriptedChat, reply, scripted_chat

from quantkit.errors import BadInput
from quantkit.verify.capture_file import AGAIN, FIRST, Capture, begin_capture
from quantkit.verify.client import Client, RequestFailed
from quantkit.verify.records import Answer, MockRule, MockTools, Request
from quantkit.verify.tool_calls.run import STREAMED_REQUESTS, capture_answers

MOCK = MockTools([MockRule("f", {"text": "New York"}, "21"), MockRule("g", {}, "2")], otherwise="none", goal="42")
LOOP = request("loop", mock=MOCK)


@pytest.fixture
def capture(tmp_path: Path) -> Iterator[Capture]:
    with begin_capture(tmp_path / "capture", {"of": "a"}) as opened:
        yield opened


def walk(path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Calls f, then f and g at once, then answers; prompts are as long as their text."""
    assert path == "/v1/chat/completions"
    size = len(json.dumps(body["messages"]))
    turns = sum(message["role"] == "assistant" for message in body["messages"])
    if turns == 0:
        return 200, reply(("f", {"text": "new york."}), prompt_tokens=size)
    if turns == 1:
        return 200, reply(("f", {"text": "Rome"}), ("g", {"text": "x"}), prompt_tokens=size)
    return 200, reply(content="It is 42.", prompt_tokens=size)


def run(chat: ScriptedChat, capture: Capture, requests: list[Request], loops: int = 0, **options: Any) -> None:
    fields: dict[str, Any] = {"run": FIRST, "limit": 50, "concurrency": 2, "history": None, "quiet": True} | options
    server = chat.server(fields.pop("engine", "openai"), fields.pop("context", None))
    with Client(server, retries=0) as client:
        capture_answers(client, requests, capture, fields.pop("run"), loops, **fields)


def kept(capture: Capture, run: str = FIRST) -> dict[tuple[int, str, int], Answer]:
    return {(loop, name, step): answer for loop, name, step, answer in capture.answers(run)}


def test_a_loop_sends_reasoning_calls_and_the_mock_tools_results_back(capture: Capture) -> None:
    with scripted_chat(walk) as chat:
        run(chat, capture, [LOOP])
    assert [len(answer.calls) for answer in kept(capture).values()] == [1, 2, 0]
    last = chat.asked[-1][1]
    assert last["tools"] == TOOLS
    assert (last["temperature"], last["max_tokens"], last["model"]) == (0, 50, "scripted")
    first_turn, first_result, second_turn, *results = last["messages"][1:]
    assert first_turn["reasoning_content"] == first_turn["reasoning"] == "Thinking."
    assert first_turn["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"text": "new york."}'}
    assert first_result == {"role": "tool", "tool_call_id": first_turn["tool_calls"][0]["id"], "content": "21"}
    assert [result["content"] for result in results] == ["none", "2"]
    assert [result["tool_call_id"] for result in results] == [each["id"] for each in second_turn["tool_calls"]]


def test_a_loop_ends_at_its_limit_of_turns_and_at_arguments_that_are_no_json(capture: Capture) -> None:
    def endless(_: str, body: dict[str, Any]) -> tuple[int, Any]:
        answer = reply(("f", {"text": "x"}))
        if body["messages"][0]["content"] == "broken":
            answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] = '{"text'
        return 200, answer

    short = MockTools([], turns=3)
    broken = request("broken", mock=short, messages=[{"role": "user", "content": "broken"}])
    with scripted_chat(endless) as chat:
        run(chat, capture, [request("long", mock=short), broken])
    assert Counter(name for _, name, _ in kept(capture)) == {"long": 3, "broken": 1}


def test_sampling_follows_the_recommendation_with_a_seed_per_question(capture: Capture) -> None:
    with scripted_chat(walk) as chat:
        run(chat, capture, [LOOP, request("single")], loops=2, engine="sglang")
        bodies = [body for _, body in chat.asked]
        sampled = [body for body in bodies if body["temperature"]]
        assert {(b["temperature"], b["top_p"], b["top_k"], b["min_p"]) for b in sampled} == {(1.0, 0.95, 40, 0)}
        # Two loops of three steps and of one; the control's two steps, its first is the loop's.
        assert len(sampled) == 2 * (3 + 1) + 2
        assert len({body["seed"] for body in sampled}) == len(sampled)
        repeated = begin_capture(capture.path.with_name("other"), {})
        run(chat, repeated, [LOOP, request("single")], loops=2, engine="sglang")
        seeds = Counter(body["seed"] for _, body in chat.asked if body["temperature"])
    assert set(seeds.values()) == {2}  # the same again
    repeated.close()


def test_the_control_shares_the_first_step_and_leaves_reasoning_out(capture: Capture) -> None:
    with scripted_chat(walk) as chat:
        run(chat, capture, [LOOP], loops=2)
    found = kept(capture)
    assert {(loop, name) for loop, name, _ in found} == {(0, "loop"), (1, "loop"), (2, "loop"), (1, "loop#stripped")}
    assert found[1, "loop#stripped", 0] == found[1, "loop", 0]
    control, loop_itself = found[1, "loop#stripped", 1], found[1, "loop", 1]
    # Each of the two names of the field, its text and the JSON around them.
    missing = len('"reasoning_content": "Thinking.", ') + len('"reasoning": "Thinking.", ')
    assert control.prompt_tokens is not None
    assert loop_itself.prompt_tokens == control.prompt_tokens + missing


def test_another_model_is_asked_on_the_first_ones_history_with_other_seeds(capture: Capture, tmp_path: Path) -> None:
    def other(_: str, body: dict[str, Any]) -> tuple[int, Any]:
        return 200, reply(content="I stop at once.")

    with scripted_chat(walk) as chat:
        run(chat, capture, [LOOP], loops=1)
    with scripted_chat(other) as second, begin_capture(tmp_path / "quantized", {}) as quantized:
        run(second, quantized, [LOOP], loops=1, history=capture)
        found = kept(quantized)
    assert [key for key in found if key[0] == 0] == [(0, "loop", 0), (0, "loop", 1), (0, "loop", 2)]
    assert [key for key in found if key[0] == 1] == [(1, "loop", 0), (1, "loop#stripped", 0)]  # on its own
    theirs, ours = ([body for _, body in each.asked if not body["temperature"]] for each in (chat, second))
    assert [body["messages"] for body in ours] == [body["messages"] for body in theirs]
    assert {body["seed"] for _, body in chat.asked}.isdisjoint(body["seed"] for _, body in second.asked)


def test_a_second_run_of_the_model_uses_its_own_first_history(capture: Capture) -> None:
    with scripted_chat(walk) as chat:
        run(chat, capture, [LOOP])
        run(chat, capture, [LOOP], run=AGAIN, history=capture)
    assert kept(capture, AGAIN) == kept(capture)


def test_a_history_without_the_request_is_named(capture: Capture, tmp_path: Path) -> None:
    with (
        scripted_chat(walk) as chat,
        begin_capture(tmp_path / "other", {}) as other,
        pytest.raises(BadInput, match="no answer to request loop"),
    ):
        run(chat, other, [LOOP], history=capture)


def test_what_is_there_is_not_asked_again_but_failures_are(capture: Capture) -> None:
    down = threading.Event()
    down.set()

    def sometimes(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if down.is_set() and len(body["messages"]) > 2:
            return 400, {"error": {"message": "out of luck"}}
        return walk(path, body)

    requests = [LOOP, *(request(f"single{number}") for number in range(20))]
    with scripted_chat(sometimes) as chat:
        run(chat, capture, requests)
        assert "out of luck" in (kept(capture)[0, "loop", 1].error or "")
        down.clear()
        before = len(chat.asked)
        run(chat, capture, requests)
        assert len(chat.asked) == before + 2  # the failed step and the one after it
        assert [answer.error for answer in kept(capture).values()] == [None] * 23
        run(chat, capture, requests)
        assert len(chat.asked) == before + 2


def test_more_than_a_tenth_of_failures_end_the_run_and_finished_answers_stay(capture: Capture) -> None:
    def failing(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return (400, {"error": "no"}) if body["messages"][0]["content"] == "bad" else walk(path, body)

    bad = [request(f"bad{number}", messages=[{"role": "user", "content": "bad"}]) for number in range(3)]
    good = [request(f"good{number}") for number in range(18)]
    with scripted_chat(failing) as chat:
        run(chat, capture, [*good, *bad[:2]])  # 2 of 20
        assert sum(answer.error is not None for answer in kept(capture).values()) == 2
        with pytest.raises(RequestFailed, match="status 400 from the server: no"):
            run(chat, capture, [*good, *bad])  # 3 of 21
    assert sum(answer.error is None for answer in kept(capture).values()) == 18


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp"])
def test_a_request_that_is_too_long_is_refused_before_anything_is_asked(capture: Capture, engine: str) -> None:
    def count(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/apply-template":
            return 200, {"prompt": body["messages"][0]["content"]}
        assert path == "/tokenize"
        text = body["content"] if engine == "llama.cpp" else body["messages"][0]["content"]
        tokens = text.split()
        return 200, {"tokens": tokens, "count": len(tokens)}

    long = request("long", messages=[{"role": "user", "content": "word " * 5000}])
    words = "request long: its prompt of 5000 tokens and an answer of 50 exceed the server's context of 5049; .*5050"
    with scripted_chat(count) as chat:
        with pytest.raises(BadInput, match=words):
            run(chat, capture, [request("short"), long], engine=engine, context=5049)
        assert not [path for path, _ in chat.asked if path == "/v1/chat/completions"]


def test_a_context_that_turned_out_too_short_is_named_with_the_remedy(capture: Capture) -> None:
    def full(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if len(body["messages"]) > 1:
            return 400, {"error": {"message": "maximum context length is 10"}}
        return walk(path, body)

    requests = [LOOP, *(request(f"single{number}") for number in range(9))]
    with scripted_chat(full) as chat:
        run(chat, capture, requests)
    error = kept(capture)[0, "loop", 1].error or ""
    assert error.startswith("request loop: ")
    assert error.endswith("; start the server with a longer context")


def test_some_single_steps_are_also_read_from_a_stream(capture: Capture) -> None:
    def both(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if not body.get("stream"):
            return walk(path, body)
        pieces = [
            {"role": "assistant", "content": ""},
            {"reasoning": "Think"},
            {"reasoning": "ing."},
            {"tool_calls": [{"index": 0, "id": "x", "function": {"name": "f", "arguments": ""}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"text": '}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '"new york."}'}}]},
        ]
        events = [{"choices": [{"delta": piece, "finish_reason": None}]} for piece in pieces]
        events.append({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
        return 200, [*events, {"choices": [], "usage": {"prompt_tokens": 3}}]

    requests = [request(f"single{number}") for number in range(STREAMED_REQUESTS + 8)]
    with scripted_chat(both) as chat:
        run(chat, capture, [*requests, LOOP], loops=1)
        streamed = {name for (_, name, _), answer in kept(capture).items() if answer.streamed is not None}
        assert len(streamed) == STREAMED_REQUESTS
        assert "loop" not in streamed
        with begin_capture(capture.path.with_name("other"), {}) as other:
            run(chat, other, requests[::-1])
            assert streamed == {name for (_, name, _), answer in kept(other).items() if answer.streamed is not None}
    answer = kept(capture)[0, sorted(streamed)[0], 0]
    assert answer.streamed is not None
    assert (answer.streamed.calls, answer.streamed.reasoning) == (answer.calls, answer.reasoning)
    assert (answer.streamed.finish_reason, answer.streamed.prompt_tokens) == ("tool_calls", 3)

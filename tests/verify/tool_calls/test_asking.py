"""One question: the engines' different answers in one form."""

from __future__ import annotations

from typing import Any

import pytest
from answer_cases import request
from scripted_chat import reply, scripted_chat

from quantkit.verify.client import Client, RequestFailed
from quantkit.verify.records import Answer
from quantkit.verify.tool_calls.ask import GREEDY_SAMPLING, PARSER_ERROR, RECOMMENDED, Sampling, ask


def asked(
    script: Any, engine: str, *, stream: bool = False, sampling: Sampling = GREEDY_SAMPLING, **fields: Any
) -> Answer:
    one = request("a", **fields)
    with scripted_chat(script) as chat, Client(chat.server(engine), retries=0) as client:
        return ask(client, one.messages, one, sampling=sampling, limit=9, seed=3, stream=stream)


def test_vllm_writes_the_token_ids_out() -> None:
    def script(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/detokenize":
            assert body == {"model": "scripted", "tokens": [1, 2]}
            return 200, {"prompt": "Thinking.</think>Yes.[e~["}
        assert body["return_token_ids"] is True
        answer = reply(content="\n\nYes.")
        answer["choices"][0]["token_ids"] = [1, 2]
        return 200, answer

    answer = asked(script, "vllm")
    assert (answer.content, answer.reasoning, answer.raw) == ("Yes.", "Thinking.", "Thinking.</think>Yes.[e~[")
    assert (answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == ("stop", 10, 5)


def test_a_proxy_without_detokenize_leaves_raw_unknown() -> None:
    def script(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        answer = reply(content="Yes.")
        answer["choices"][0]["token_ids"] = [1]
        return (404, {"detail": "Not Found"}) if path == "/detokenize" else (200, answer)

    assert asked(script, "vllm").raw is None


def test_llama_cpp_gives_bytes_of_tokens_even_halves_of_characters() -> None:
    def script(_: str, body: dict[str, Any]) -> tuple[int, Any]:
        assert (body["logprobs"], body["top_logprobs"], body["min_p"]) == (True, 1, 0)
        answer = reply(content="é")
        answer["choices"][0]["message"]["reasoning_content"] = answer["choices"][0]["message"].pop("reasoning")
        tokens = [(b"T", "T"), (b"</think>", "</think>"), (b"\xc3", "\ufffd"), (b"\xa9", "\ufffd"), (b"", "")]
        answer["choices"][0]["logprobs"] = {"content": [{"bytes": list(b), "token": t} for b, t in tokens]}
        return 200, answer

    answer = asked(script, "llama.cpp")
    assert (answer.raw, answer.reasoning) == ("T</think>é", "Thinking.")


def test_a_refusal_of_llama_cpps_parser_is_an_answer_of_the_model() -> None:
    words = "The model produced output that does not match the expected peg-native format"
    answer = asked(lambda *_: (500, {"error": {"code": 500, "message": words}}), "llama.cpp")
    assert answer == Answer(finish_reason=PARSER_ERROR)
    with pytest.raises(RequestFailed, match="out of memory"):
        asked(lambda *_: (500, {"error": {"code": 500, "message": "out of memory"}}), "llama.cpp")


def test_thinking_that_the_server_left_in_the_content_is_split_off() -> None:
    answer = asked(lambda *_: (200, reply(content="<think>\nHm.\n</think>\n\nYes.", reasoning="")), "openai")
    assert (answer.reasoning, answer.content) == ("Hm.", "Yes.")


def test_a_plain_openai_server_gets_plain_fields_and_those_of_the_request() -> None:
    bodies = []

    def script(_: str, body: dict[str, Any]) -> tuple[int, Any]:
        bodies.append(body)
        return 200, reply(content="Yes.")

    asked(script, "openai", sampling=RECOMMENDED, options={"tool_choice": "auto", "temperature": 0.2}, tools=[])
    expected = {"model", "messages", "max_tokens", "temperature", "top_p", "seed", "tool_choice"}
    assert bodies[0].keys() == expected
    assert (bodies[0]["temperature"], bodies[0]["top_p"], bodies[0]["seed"]) == (1.0, 0.95, 3)


def test_a_broken_stream_is_an_answer_with_an_error() -> None:
    def script(_: str, body: dict[str, Any]) -> tuple[int, Any]:
        return (200, [{"error": {"message": "lost"}}]) if body.get("stream") else (200, reply(content="Yes."))

    answer = asked(script, "openai", stream=True)
    assert answer.content == "Yes."
    assert answer.streamed is not None
    assert "lost" in (answer.streamed.error or "")


def test_an_answer_without_choices_is_a_failure() -> None:
    with pytest.raises(RequestFailed, match="without choices"):
        asked(lambda *_: (200, {"choices": []}), "openai")

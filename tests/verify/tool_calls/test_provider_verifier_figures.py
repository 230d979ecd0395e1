"""MiniMax-Provider-Verifier's figures by its definitions, and answers that differ, by hand."""

from __future__ import annotations

import pytest
from answer_cases import PROPERTIES, answers, call, calling, request, saying

from quantkit.verify.records import Answer
from quantkit.verify.tool_calls.differences import differences
from quantkit.verify.tool_calls.provider_verifier import is_split_command, provider_verifier_figures


def test_figures_over_all_loops() -> None:
    requests = [request("a", label=True), request("b", label=False), request("c", language="ja")]
    reference = {
        **answers(1, a=calling(call(text="x")), b=saying(), c=saying("はい")),
        **answers(2, a=calling(call(text="x")), b=saying(), c=saying("はい")),
    }
    quantized = {
        **answers(1, a=calling(call(text="x"), call()), b=calling(call(text="x")), c=saying("Да")),
        **answers(2, a=Answer(error="gone"), b=saying(), c=saying("", finish_reason="length")),
    }
    figures = provider_verifier_figures(requests, reference, quantized)
    assert figures["reference"] == {
        "query_success": 1.0,
        "match_rate": 1.0,
        "schema_accuracy": 1.0,
        "reasoning_only": 0.0,
        "language_following": 1.0,
    }
    found = figures["quantized"]
    assert found["query_success"] == 5 / 6
    assert found["match_rate"] == 2 / 4  # a in loop 1, b in loop 2; the failed request is no match
    assert found["schema_accuracy"] == 1 / 2  # of a's two calls one lacks its text
    assert found["reasoning_only"] == 1 / 6  # cut answers count here
    assert found["language_following"] == 0.0  # one answer with text
    assert found["trigger_similarity"] == 2 * 1 / (2 * 1 + 1 + 1)  # a TP, b FP in loop 1; a FN in loop 2
    # Calls per turn with calls: {1: 2} of the reference, {2: 1, 1: 1} here.
    assert found["multi_trigger_similarity"] == pytest.approx(1 / 2**0.5)


@pytest.mark.parametrize(
    ("command", "split"),
    [
        (["ls", "-la", "/tmp/my folder"], True),
        (["ls -la"], False),
        (["sudo", "rm -rf x"], False),
        (["bash", "-lc", "ls -la | wc"], True),
        (["/bin/sh", "-l", "-c", "cat a b"], True),
        (["bash", "script.sh", "git status"], False),
        (["echo", "hello world"], True),
        ([], False),
    ],
)
def test_commands_in_arrays_have_to_be_split(command: list[str], split: bool) -> None:
    assert is_split_command(command) == split


def test_an_unsplit_command_is_no_valid_call() -> None:
    properties = PROPERTIES | {"command": {"type": "array", "items": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}
    requests = [request("a", tools=[tool]), request("b", tools=[tool])]
    quantized = answers(a=calling(call(command=["git status"])), b=calling(call(command=["git", "status"])))
    assert provider_verifier_figures(requests, quantized, quantized)["quantized"]["schema_accuracy"] == 0.5


def test_differences_are_greedy_and_the_worst_kinds_come_first() -> None:
    requests = [request(name) for name in ("same", "content", "arguments", "count", "name", "trigger", "thought")]
    left = calling(call(text="x"))
    reference = answers(
        same=left, content=saying("a"), arguments=left, count=left, name=[left, left], trigger=left, thought=saying()
    )
    quantized = answers(
        same=left,
        content=saying("b"),
        arguments=calling(call(text="y")),
        count=calling(call(text="x"), call(text="x")),
        name=[left, calling(call("g", text="x"))],
        trigger=saying("No."),
        thought=saying(reasoning="Other."),
    )
    found = differences(requests, {**reference, **answers(1, same=left)}, {**quantized, **answers(1, same=saying())})
    assert [each["kind"] for each in found] == ["trigger", "name", "count", "arguments", "content"]
    assert [each["request"] for each in found] == ["trigger", "name", "count", "arguments", "content"]
    assert found[1] == {
        "request": "name",
        "step": 1,
        "category": "c",
        "prompt": "Go.",
        "kind": "name",
        "reference": {"content": "", "reasoning": "Hm.", "calls": [{"name": "f", "arguments": '{"text": "x"}'}]},
        "quantized": {"content": "", "reasoning": "Hm.", "calls": [{"name": "g", "arguments": '{"text": "x"}'}]},
    }

"""Every metric of tool-call fidelity against a case counted by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
from answer_cases import answers, call, calling, request, saying

from quantkit.verify.records import Answer, Call, MockRule, MockTools, Rate, Request
from quantkit.verify.tool_calls.metrics import tool_call_rates

A, B, C, D = (request(name) for name in "abcd")
CALL = '<invoke name="f"><parameter name="text">x</parameter></invoke>'
WHOLE = f"Hm.\n</think>\n\n\n<minimax:tool_call>\n{CALL}\n</minimax:tool_call>[e~["
LOOP = MockTools([MockRule("f", {}, "found")], turns=3, goal="42")


def measured(
    name: str,
    requests: list[Request],
    quantized: Mapping[tuple[int, str, int], Answer],
    reference: Mapping[tuple[int, str, int], Answer] | None = None,
) -> Rate:
    return tool_call_rates(requests, quantized if reference is None else reference, quantized)[name]


def per_request(rate: Rate) -> list[tuple[float, float]]:
    return list(zip(rate.counts.tolist(), rate.chances.tolist(), strict=True))


def test_trigger_f1_takes_the_reference_as_truth() -> None:
    # a: both (TP), b: reference only (FN), c: quantized only (FP), d: neither. F1 = 2 / (2 + 1 + 1).
    reference = answers(a=calling(call()), b=calling(call()), c=saying(), d=saying())
    quantized = answers(a=calling(call()), b=saying(), c=calling(call()), d=saying())
    rate = measured("trigger_f1", [A, B, C, D], quantized, reference)
    assert per_request(rate) == [(2, 2), (0, 1), (0, 1), (0, 0)]
    assert rate.value == 0.5


def test_comparisons_are_of_the_greedy_loop_and_of_answers_that_both_gave() -> None:
    reference = {**answers(a=[calling(call()), saying()], b=calling(call())), **answers(1, a=calling(call()))}
    quantized = {**answers(a=[calling(call()), calling(call())], b=Answer(error="gone")), **answers(1, a=saying())}
    # Step 0 of a is a TP, step 1 an FP; b has no answer; loop 1 is not looked at.
    assert per_request(measured("trigger_f1", [A, B], quantized, reference)) == [(2, 3), (0, 0)]


def test_names_are_compared_as_a_multiset_where_both_call() -> None:
    reference = answers(
        a=calling(call("f"), call("g")), b=calling(call("f"), call("f")), c=calling(call("f")), d=saying()
    )
    quantized = answers(a=calling(call("g"), call("f")), b=calling(call("f")), c=saying(), d=calling(call("f")))
    assert per_request(measured("tool_name_match", [A, B, C, D], quantized, reference)) == [
        (1, 1),
        (0, 1),
        (0, 0),
        (0, 0),
    ]


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ('{"text": "x", "count": 2}', '{"count": 2.0,"text":"x"}', True),
        ('{"text": {"a": [1, {"b": 2.50}]}}', '{"text": {"a": [1.0, {"b": 2.5}]}}', True),
        ('{"text": "é"}', '{"text": "\\u00e9"}', True),
        ('{"text": "x"}', '{"text": "X"}', False),
        ('{"text": "1"}', '{"text": 1}', False),
        ('{"text": true}', '{"text": 1}', False),
        ('{"text": [1, 2]}', '{"text": [2, 1]}', False),
        ('{"text": ""}', "{}", False),
        ("{", "{", True),
        ("{", "{}", False),
    ],
)
def test_arguments_are_equal_as_canonical_json(left: str, right: str, equal: bool) -> None:
    reference, quantized = answers(a=calling(Call("f", left))), answers(a=calling(Call("f", right)))
    assert measured("arg_exact", [A], quantized, reference).value == equal


def test_arguments_match_after_bfcls_normalization_per_parameter() -> None:
    reference = answers(
        a=calling(call(text="New-York, NY.", count=2)),
        b=calling(call(text="it's"), call("g", text="y")),
        c=calling(call(text="x")),
    )
    quantized = answers(
        a=calling(call(text="new york NY", count=3)),
        b=calling(call("g", text="Y", count=1), call(text='it"s')),
        c=calling(call("g", text="x", count=1)),
    )
    # a: text agrees, count does not. b: f's text agrees, g's too, g's count is one more. c: f's text and both of g.
    assert per_request(measured("arg_match", [A, B, C], quantized, reference)) == [(1, 2), (2, 3), (0, 3)]


def test_parallel_calls_of_one_tool_are_held_against_the_nearest() -> None:
    reference = answers(a=calling(call(text="x", count=1), call(text="y", count=2)))
    quantized = answers(a=calling(call(text="y", count=2), call(text="x", count=5)))
    assert per_request(measured("arg_match", [A], quantized, reference)) == [(3, 4)]


def test_call_counts_are_compared_by_the_cosine_of_their_histograms() -> None:
    one, two = calling(call()), calling(call(), call())
    reference = {**answers(1, a=one, b=one), **answers(2, a=two, b=one)}
    quantized = {**answers(1, a=one, b=two), **answers(2, a=one, b=saying())}
    # a: (1, 1) against (2, 0): 2 / (sqrt(2) * 2). b: (2, 0) against (0, 1): 0.
    rate = measured("call_count_cos", [A, B], quantized, reference)
    assert rate.counts.tolist() == pytest.approx([1 / math.sqrt(2), 0])
    assert rate.chances.tolist() == [1, 1]


def test_prompt_tokens_are_compared_where_both_servers_tell() -> None:
    reference = answers(a=[saying(prompt_tokens=10), saying(prompt_tokens=20)], b=saying(prompt_tokens=5))
    quantized = answers(a=[saying(prompt_tokens=10), saying(prompt_tokens=21)], b=saying())
    assert per_request(measured("prompt_tokens_equal", [A, B], quantized, reference)) == [(1, 2), (0, 0)]


def test_query_success_counts_errors_and_refusals_of_llama_cpps_parser() -> None:
    quantized = answers(a=[calling(call()), Answer(error="gone")], b=Answer(finish_reason="parser_error"))
    assert per_request(measured("query_success", [A, B], quantized)) == [(1, 2), (0, 1)]


def test_match_rate_is_of_first_answers_with_a_label_and_a_cut_answer_is_no_match() -> None:
    requests = [request("a", label=True), request("b", label=False), request("c", label=False), request("d")]
    quantized = {
        **answers(1, a=[calling(call()), saying()], b=saying(), c=saying(finish_reason="length"), d=saying()),
        **answers(2, a=saying(), b=calling(call()), c=Answer(error="gone"), d=saying()),
        **answers(0, a=saying(), b=saying(), c=saying(), d=saying()),
    }
    # Loops 1 and 2, not the greedy one: a 1 of 2, b 1 of 2, c 0 of 2, d has no label.
    assert per_request(measured("match_rate", requests, quantized)) == [(1, 2), (1, 2), (0, 2), (0, 0)]
    assert per_request(measured("abstention", requests, quantized)) == [(0, 0), (1, 2), (0, 2), (0, 0)]


def test_without_sampling_loops_the_greedy_one_counts() -> None:
    assert per_request(measured("match_rate", [request("a", label=False)], answers(a=saying()))) == [(1, 1)]


@pytest.mark.parametrize(
    ("calls", "valid"),
    [
        ([call(text="x")], True),
        ([call(text="x", count=1), call("g", text="y")], True),
        ([call(text="x"), call("g")], False),  # text is missing in the second
        ([call(text="x", count="1")], False),
        ([call("h", text="x")], False),
        ([Call("f", '{"text": ')], False),
        ([Call("f", '"text"')], False),
        ([], False),
    ],
)
def test_schema_accuracy_wants_every_call_of_a_turn_valid(calls: list[Call], valid: bool) -> None:
    assert per_request(measured("schema_accuracy", [A, B], answers(a=calling(*calls), b=saying()))) == [
        (valid, 1),
        (0, 0),
    ]


def test_expected_calls_count_in_any_order_and_none_may_be_expected() -> None:
    requests = [
        request("a", expected=[call(text="x", count=1), call("g", text="y")]),
        request("b", expected=[call(text="x")]),
        request("c", expected=[]),
        D,
    ]
    quantized = answers(
        a=calling(call("g", text="y"), call(text="x", count=1.0)),
        b=calling(call(text="x"), call(text="x")),
        c=saying(),
        d=saying(),
    )
    assert per_request(measured("expected_exact", requests, quantized)) == [(1, 1), (0, 1), (1, 1), (0, 0)]


@pytest.mark.parametrize(
    ("answer", "failed"),
    [
        (calling(call(text="x"), raw=WHOLE), False),
        (saying(raw="Hm.</think>Done."), False),
        (saying(raw=WHOLE), True),  # a call that was not parsed
        (saying(raw=WHOLE.replace('"f"', '"h"')), True),  # vLLM drops calls of unknown tools
        (calling(call(text="x"), raw=WHOLE.replace("</invoke>", "")), True),
        (calling(call(text="x"), raw=WHOLE.replace("Hm.\n</think>", "")), True),  # within the thinking
        (calling(call("h", text="x")), True),
        (calling(Call("f", "{")), True),
        (saying(finish_reason="length"), True),
        (Answer(finish_reason="parser_error"), True),
        (saying('<minimax:tool_call>\n<invoke name="f">'), True),  # nobody told the raw text
        (saying("I would invoke f."), False),
    ],
)
def test_parser_failures(answer: Answer, failed: bool) -> None:
    assert measured("parser_fail", [A], answers(a=answer)).value == failed


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (calling(call(text="x"), raw=WHOLE), True),
        (saying(raw="<think>Hm.</think>Done.[e~["), True),
        (saying(raw="Hm.</think>Done.</think>More."), False),
        (saying(raw="Hm.</think>Done. <think>Hm."), False),
        (saying(raw="\n</think>Done."), False),  # empty
        (saying(raw="Hm. Done."), False),  # not closed
        (saying(raw="Hm.</think>Done.]~b]user"), False),
        (saying("Done.[e~[", raw="Hm.</think>Done.[e~["), False),  # the server let it through
        (calling(call(text="x"), raw=WHOLE.replace(">x<", "></think><")), True),  # in a value it is text
        (calling(call(text="x"), raw=WHOLE.replace("Hm.\n</think>", "") + "</think>"), False),
        (saying(), True),
        (saying(reasoning=""), False),
        (saying("Hm.</think>Done.", reasoning=""), False),
    ],
)
def test_thinking_has_to_be_one_whole_block(answer: Answer, whole: bool) -> None:
    assert measured("think_integrity", [A], answers(a=answer)).value == whole


def test_thinking_alone_counts_but_for_answers_that_were_cut() -> None:
    quantized = answers(a=saying(""), b=saying("", finish_reason="length"), c=calling(call()), d=Answer(error="gone"))
    assert per_request(measured("reasoning_only", [A, B, C, D], quantized)) == [(1, 1), (0, 1), (0, 1), (0, 0)]


def test_streams_are_compared_where_the_model_wrote_the_same() -> None:
    parsed = calling(call(text="x"), raw=WHOLE)
    cases = {
        "a": replace(parsed, streamed=calling(Call("f", '{"text":"x"}'), raw=WHOLE)),
        "b": replace(parsed, streamed=saying("", raw=WHOLE)),  # the stream's parser lost the call
        "c": replace(parsed, streamed=saying("Other.", raw="Hm.</think>Other.")),  # other tokens
        "d": replace(parsed, streamed=Answer(error="broke")),
    }
    quantized = {**answers(**cases), **answers(1, a=parsed)}
    assert per_request(measured("stream_parity", [A, B, C, D], quantized)) == [(1, 1), (0, 1), (0, 0), (0, 1)]


def test_loops_succeed_when_a_last_answer_without_calls_holds_the_goal() -> None:
    requests = [request(name, mock=LOOP) for name in "abcd"]
    step = calling(call(text="x"), prompt_tokens=10)
    quantized = {
        **answers(
            1, a=[step, saying("It is 42.")], b=[step, saying("It is 41.")], c=[step, step, step], d=[Answer(error="x")]
        ),
        **answers(2, a=[step, saying("42", finish_reason="length")], b=[saying("THE 42", reasoning="")]),
    }
    # Turns: 2 + 2, 2 + 1, 3, 1. Thinking: all but the last of b; d has no answer.
    assert per_request(measured("interleaved_success", requests, quantized)) == [(1, 2), (1, 2), (0, 1), (0, 1)]
    assert per_request(measured("interleaved_turns", requests, quantized)) == [(4, 2), (3, 2), (3, 1), (1, 1)]
    assert per_request(measured("interleaved_thinking", requests, quantized)) == [(4, 4), (2, 3), (3, 3), (0, 0)]
    assert per_request(measured("interleaved_success", [A], quantized)) == [(0, 0)]  # no loop


def test_the_control_is_counted_apart_and_its_prompt_has_to_be_shorter() -> None:
    requests = [request(name, mock=LOOP) for name in "abc"]
    step, final = calling(call(text="x"), prompt_tokens=10), saying("42", prompt_tokens=30)
    shorter, missed = saying("42", prompt_tokens=25), saying("No.", prompt_tokens=30)
    quantized = {
        **answers(1, a=[step, final], b=[step, final], c=[replace(step, reasoning=""), final]),
        **answers(1, **{"a#stripped": [step, shorter], "b#stripped": [step, missed], "c#stripped": [step, shorter]}),
    }
    assert per_request(measured("interleaved_control", requests, quantized)) == [(1, 1), (0, 1), (1, 1)]
    assert per_request(measured("interleaved_success", requests, quantized)) == [(1, 1), (1, 1), (1, 1)]
    # c thought nothing in its first turn, so there is nothing to be shorter by.
    assert per_request(measured("reasoning_echoed", requests, quantized)) == [(1, 1), (0, 1), (0, 0)]


@pytest.mark.parametrize(
    ("text", "degenerate"),
    [
        ("a b c. " * 4, True),
        ("a b c d. " * 3, False),  # each of its three words in a row three times
        ("お前は" * 4, True),
        ("Wait, 我不知道.", True),
        ("Так.", True),
        ("Größe: 3 µm, naïve, Ω.", False),
    ],
)
def test_degenerate_text(text: str, degenerate: bool) -> None:
    assert measured("degeneration", [A], answers(a=saying(text, reasoning=""))).value == degenerate


def test_scripts_of_the_request_or_its_language_are_not_foreign() -> None:
    asked = request("a", messages=[{"role": "user", "content": "Что такое 猫?"}])
    korean = request("b", language="ko")
    quantized = answers(a=saying("Кошка, 猫 или ねこ."), b=saying("고양이"), c=calling(call(), reasoning=""))
    assert per_request(measured("degeneration", [asked, korean, C], quantized)) == [(0, 1), (0, 1), (0, 0)]


@pytest.mark.parametrize(
    ("language", "text", "follows"),
    [
        ("de", "Das ist die Antwort auf die Frage.", True),
        ("de", "This is the answer to the question.", False),
        ("fr", "Le train est à l'heure.", True),
        ("es", "El tren llega a las 5 y no antes.", True),
        ("tr", "Tren ve otobüs için bir bilet.", True),
        ("tr", "The ticket is for you.", False),
        ("en", "Das ist gut.", True),  # not told apart from other Latin letters
        ("ja", "お年玉はお正月に渡します。", True),
        ("ja", "春节的时候给。", False),
        ("ja", "お年玉 дают на Новый год, обычно детям.", False),
        ("zh", "春节的时候给。", True),
        ("ru", "Это ответ (OK).", True),
        ("ru", "This is the answer.", False),
        ("ar", "هذا هو الجواب", True),
        ("hi", "यह उत्तर है", True),
        ("ko", "이것이 답입니다", True),
        ("xx", "Anything in Latin.", True),
        ("de", "42", None),
    ],
)
def test_language_following(language: str, text: str, follows: bool | None) -> None:
    rate = measured("language_following", [request("a", language=language)], answers(a=saying(text)))
    assert per_request(rate) == [(follows or 0, follows is not None)]


def test_a_category_is_measured_by_giving_its_requests_alone() -> None:
    quantized = answers(a=calling(call(text="x")), b=calling(call()))
    assert measured("schema_accuracy", [A, B], quantized).value == 0.5
    assert measured("schema_accuracy", [A], quantized).value == 1.0
    assert math.isnan(measured("schema_accuracy", [C], quantized).value)

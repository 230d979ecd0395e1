"""Scoring on stand-ins that answer in the documented shapes: what a real server cannot be made to say on demand."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from faulty_server import Asked, Script, serving

from quantkit.errors import BadInput, QuantkitError
from quantkit.verify.client import Client, RequestFailed
from quantkit.verify.divergence.scoring import default_top, score_passages
from quantkit.verify.records import Passage, Scores
from quantkit.verify.servers.running import Server

VOCAB = 50_000
PASSAGE = Passage("prose", "prose 0", np.array([7, 8, 9, 10], np.int32))


def scored(server: Server, *, top: int = 2, vocab: int = VOCAB, passage: Passage = PASSAGE) -> Scores:
    kept: dict[int, Scores] = {}
    with Client(server, retries=0) as client:
        score_passages(client, [passage], [0], vocab, top, kept.__setitem__, 1)
    return kept[0]


def vllm_entry(**logprobs: float | None) -> dict[str, Any]:
    """An entry of prompt_logprobs; t8=-1.0 is token 8 with log p -1."""
    return {
        name[1:]: {"logprob": value, "rank": rank, "decoded_token": name}
        for rank, (name, value) in enumerate(logprobs.items(), start=1)
    }


def vllm_says(*entries: dict[str, Any]) -> Script:
    choice = {"index": 0, "text": "", "prompt_logprobs": [None, *entries]}
    return Script(otherwise=lambda asked: (200, {}, {"choices": [choice]}))


# vLLM


def test_vllm_entries_with_and_without_the_actual_token_beside_the_best() -> None:
    script = vllm_says(
        vllm_entry(t8=-0.5, t3=-1.0),  # K entries: the actual token is the best
        vllm_entry(t9=-9.0, t4=-0.25, t5=-1.5),  # K + 1: it comes first and is not among the best
        vllm_entry(t10=-1.0, t6=-0.75),  # K entries, the actual token first though second best
    )
    with serving(script, engine="vllm") as server:
        scores = scored(server)
    (asked,) = script.asked
    assert asked.path == "/v1/completions"
    assert asked.body == {
        "model": "m",
        "prompt": [7, 8, 9, 10],
        "prompt_logprobs": 2,
        "max_tokens": 1,
        "temperature": 0,
    }
    assert scores.actual.tolist() == [-0.5, -9.0, -1.0]
    assert scores.top_ids.tolist() == [[8, 3], [4, 5], [6, 10]]
    assert scores.top.tolist() == [[-0.5, -1.0], [-0.25, -1.5], [-0.75, -1.0]]
    assert (scores.actual.dtype, scores.top_ids.dtype, scores.top.dtype) == (np.float64, np.int32, np.float32)


def test_vllm_position_that_is_not_finite_is_nan_and_the_others_are_kept() -> None:
    script = vllm_says(
        vllm_entry(t8=-9999.0, t3=-1.0, t4=-2.0),  # the actual token's alone
        vllm_entry(t9=-0.5, t3=-9999.0),  # among the best
        vllm_entry(t10=-0.5),  # one of the K is missing
    )
    with serving(script, engine="vllm") as server:
        scores = scored(server)
    assert np.isnan(scores.actual).tolist() == [True, True, True]
    assert scores.top[0].tolist() == [-1.0, -2.0]
    assert np.isnan(scores.top[1:]).all()


def test_vllm_actual_token_not_told_is_nan() -> None:
    script = vllm_says(vllm_entry(t1=-1.0, t2=-2.0), *[vllm_entry(t9=-0.5, t10=-1.0)] * 2)
    with serving(script, engine="vllm") as server:
        scores = scored(server)
    assert np.isnan(scores.actual).tolist() == [True, False, False]


def test_vllm_nan_that_json_cannot_say_is_a_passage_of_nan() -> None:
    """vLLM 0.32 turns minus infinity into -9999 but not NaN; Starlette refuses to write it (see test_scoring_vllm)."""
    words = "Out of range float values are not JSON compliant: nan"
    script = Script(otherwise=lambda asked: (400, {}, {"error": {"message": words, "type": "BadRequestError"}}))
    with serving(script, engine="vllm") as server:
        scores = scored(server)
    assert np.isnan(scores.actual).all()
    assert scores.top.shape == (3, 2)
    assert np.isnan(scores.top).all()


def test_vllm_started_for_fewer_logprobs_is_told_how_to_be_started() -> None:
    words = "Requested prompt logprobs of 128, which is greater than max allowed: 20"
    script = Script(otherwise=lambda asked: (400, {}, {"error": {"message": words}}))
    with serving(script, engine="vllm") as server, pytest.raises(BadInput, match=f"{words}; .*--max-logprobs 128"):
        scored(server, top=128)


def test_other_refusals_stay_what_they_are() -> None:
    script = Script(otherwise=lambda asked: (400, {}, {"error": {"message": "no"}}))
    with serving(script, engine="vllm") as server, pytest.raises(RequestFailed, match=r"400.*no"):
        scored(server)


# SGLang: after its documentation alone


def test_sglang_documented_shape() -> None:
    told = {
        "input_token_logprobs": [[None, 7, None], [-0.5, 8, None], [-9.0, 9, None], [None, 10, None]],
        "input_top_logprobs": [
            None,
            [[-0.5, 8, None], [-1.0, 3, None]],
            [[-0.25, 4, None], [-1.5, 5, None]],
            [[None, 1, None], [None, 2, None]],
        ],
    }
    script = Script(otherwise=lambda asked: (200, {}, {"text": "x", "meta_info": told}))
    with serving(script, engine="sglang") as server:
        scores = scored(server)
    (asked,) = script.asked
    assert (asked.path, asked.body["input_ids"]) == ("/generate", [7, 8, 9, 10])
    assert asked.body["return_logprob"] is True
    assert (asked.body["logprob_start_len"], asked.body["top_logprobs_num"]) == (0, 2)
    assert scores.actual[:2].tolist() == [-0.5, -9.0]
    assert scores.top_ids[:2].tolist() == [[8, 3], [4, 5]]
    assert scores.top[:2].tolist() == [[-0.5, -1.0], [-0.25, -1.5]]
    assert np.isnan(scores.actual[2])
    assert np.isnan(scores.top[2]).all()


# llama.cpp


def llama_says(generate: Any, *, slots: int = 1) -> Script:
    """Answers of llama.cpp's server; `generate(body)` makes completion_probabilities."""

    def otherwise(asked: Asked) -> tuple[int, dict[str, str], Any]:
        if asked.path == "/props":
            return 200, {}, {"total_slots": slots}
        if asked.path == "/tokenize":
            return 200, {}, {"tokens": [65]}
        return 200, {}, {"completion_probabilities": generate(asked.body)}

    return Script(otherwise=otherwise)


def forced_step(body: dict[str, Any]) -> list[dict[str, Any]]:
    ((token, _),) = body["logit_bias"]
    best = [{"id": 1, "logprob": -0.5}, {"id": 2, "logprob": -1.0}]
    return [{"id": token, "logprob": -3.0, "top_logprobs": best}]


def test_llama_cpp_forces_every_token() -> None:
    script = llama_says(forced_step)
    with serving(script, engine="llama.cpp") as server:
        scores = scored(server)
    bodies = [asked.body for asked in script.asked if asked.path == "/completion"]
    assert [body["prompt"] for body in bodies] == [[7], [7, 8], [7, 8, 9]]
    assert [body["logit_bias"] for body in bodies] == [[[8, 1000.0]], [[9, 1000.0]], [[10, 1000.0]]]
    assert all(body["n_predict"] == 1 and body["n_probs"] == 2 and body["cache_prompt"] for body in bodies)
    assert scores.actual.tolist() == [-3.0] * 3
    assert scores.top_ids.tolist() == [[1, 2]] * 3


def test_llama_cpp_keeps_a_passage_in_one_slot_and_uses_all() -> None:
    together = threading.Barrier(2)

    def generate(body: dict[str, Any]) -> list[dict[str, Any]]:
        if len(body["prompt"]) == 1:
            together.wait(10)  # breaks unless two passages are under way at once
        return forced_step(body)

    passages = [Passage("x", f"x {n}", np.array([100 + n, 8, 9], np.int32)) for n in range(4)]
    script = llama_says(generate, slots=2)
    kept: dict[int, Scores] = {}
    with serving(script, engine="llama.cpp") as server, Client(server) as client:
        score_passages(client, passages, [0, 1, 3, 2], VOCAB, 2, kept.__setitem__, 8)
    assert sorted(kept) == [0, 1, 2, 3]
    slots: dict[int, set[int]] = {}
    for asked in script.asked:
        if asked.path == "/completion":
            slots.setdefault(asked.body["prompt"][0], set()).add(asked.body["id_slot"])
    assert all(len(of_passage) == 1 for of_passage in slots.values())
    assert set().union(*slots.values()) == {0, 1}


def test_llama_cpp_null_is_nan_and_underflow_is_the_smallest_probability() -> None:
    def generate(body: dict[str, Any]) -> list[dict[str, Any]]:
        (step,) = forced_step(body)
        if len(body["prompt"]) == 1:
            step["logprob"] = -3.4028234663852886e38
        if len(body["prompt"]) == 2:
            step |= {"id": 0, "logprob": None, "top_logprobs": [{"id": n, "logprob": None} for n in (1, 2)]}
        return [step]

    with serving(llama_says(generate), engine="llama.cpp") as server:
        scores = scored(server)
    assert scores.actual[0] == pytest.approx(np.log(2.0) * -149)
    assert np.isnan(scores.actual).tolist() == [False, True, False]
    assert np.isnan(scores.top).any(1).tolist() == [False, True, False]


def test_llama_cpp_that_does_not_force_is_an_error() -> None:
    def generate(body: dict[str, Any]) -> list[dict[str, Any]]:
        return [forced_step(body)[0] | {"id": 1}]

    with (
        serving(llama_says(generate), engine="llama.cpp") as server,
        pytest.raises(QuantkitError, match="8 was forced"),
    ):
        scored(server)


# Before anything is asked


def test_plain_server_cannot_score() -> None:
    script = Script()
    with serving(script, engine="openai") as server, pytest.raises(BadInput, match=r"^openai: .*tool calls alone"):
        scored(server)
    assert script.asked == []


@pytest.mark.parametrize(("engine", "fits", "flag"), [("vllm", 5, "--max-model-len"), ("llama.cpp", 4, "-c")])
def test_passage_longer_than_the_context_is_refused_before_any_request(engine: str, fits: int, flag: str) -> None:
    """vLLM generates a token behind the passage of four; of llama.cpp the last token is the generated one."""
    script = llama_says(forced_step) if engine == "llama.cpp" else vllm_says(*[vllm_entry(t1=-1.0, t2=-2.0)] * 3)
    with serving(script, engine=engine, context=fits) as server:
        scored(server)
    script.asked.clear()
    with serving(script, engine=engine, context=fits - 1) as server:
        with pytest.raises(BadInput, match=rf"prose 0: 4 tokens need a context of {fits}, .* has {fits - 1}; .*{flag}"):
            scored(server)
        assert script.asked == []


def test_number_of_logprobs_per_engine() -> None:
    assert default_top("vllm", 200_064) == default_top("sglang", 200_064) == 128
    assert default_top("vllm", 4096) == default_top("sglang", 4096) == 1024
    assert default_top("vllm", 512) == 512
    assert default_top("llama.cpp", 4096) == 4096
    assert default_top("llama.cpp", 8192) == 8192
    assert default_top("llama.cpp", 8193) == 128
    assert default_top("vllm", 100) == 100
    with pytest.raises(BadInput):
        default_top("openai", 4096)

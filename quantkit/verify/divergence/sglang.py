"""Scores from SGLang's native endpoint: log-probabilities of a prompt's own tokens, one request for a passage."""

from __future__ import annotations

from collections.abc import Callable

from quantkit.verify.client import Client
from quantkit.verify.divergence.rows import Rows, as_list
from quantkit.verify.records import Passage, Scores

PATH = "/generate"


def scorer(client: Client, top: int, vocab: int) -> Callable[[Passage], Scores]:
    """A function that scores a passage; many threads may call it.

    Written after SGLang's documentation of `input_token_logprobs` and `input_top_logprobs`: an entry for every token
    of the prompt, the first of them null, the others [log p, id, text] and a list of such.
    """

    def score(passage: Passage) -> Scores:
        body = {
            "input_ids": as_list(passage.ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": top,
        }
        told = client.post(PATH, body)["meta_info"]
        rows = Rows(passage.scored, top)
        _, *actual = told["input_token_logprobs"]
        _, *best = told["input_top_logprobs"]
        for position, (token, (logprob, named, *_), entries) in enumerate(
            zip(passage.ids[1:], actual, best, strict=True)
        ):
            value = logprob if named == token else None
            rows.put(position, value, [entry[1] for entry in entries], [entry[0] for entry in entries])
        return rows.scores()

    return score

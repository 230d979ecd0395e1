"""Scores from vLLM: log-probabilities of a prompt's own tokens, one request for a passage."""

from __future__ import annotations

from collections.abc import Callable

from quantkit.errors import BadInput
from quantkit.verify.client import Client, RequestFailed
from quantkit.verify.divergence.rows import Rows, as_list
from quantkit.verify.records import Passage, Scores

PATH = "/v1/completions"
# What the server answers where a log-probability is NaN, which JSON cannot say.
NAN_WORDS = "not JSON compliant"


def scorer(client: Client, top: int, vocab: int) -> Callable[[Passage], Scores]:
    """A function that scores a passage; many threads may call it.

    Values are log-softmax of the raw logits, whatever the sampling settings. A passage with a NaN anywhere is NaN
    everywhere, since the server then gives no answer at all.
    """

    def score(passage: Passage) -> Scores:
        rows = Rows(passage.scored, top)
        body = {
            "model": client.server.model,
            "prompt": as_list(passage.ids),
            "prompt_logprobs": top,
            "max_tokens": 1,
            "temperature": 0,
        }
        try:
            (choice,) = client.post(PATH, body)["choices"]
        except RequestFailed as error:
            if NAN_WORDS in error.said:
                return rows.scores()
            if error.status == 400 and "logprobs" in error.said:
                raise BadInput(f"{client.server.url}: {error.said}; start it with --max-logprobs {top}") from None
            raise
        # An entry has the K most probable tokens, and the actual one too where that is not among them.
        _, *entries = choice["prompt_logprobs"]
        for position, (token, entry) in enumerate(zip(passage.ids[1:], entries, strict=True)):
            actual = entry.get(str(token), {}).get("logprob")
            rows.put(position, actual, [int(key) for key in entry], [value["logprob"] for value in entry.values()])
        return rows.scores()

    return score

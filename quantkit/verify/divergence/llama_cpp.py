"""Scores from llama.cpp's server, which tells nothing of a prompt: every token is forced to be the one generated.

For each position the tokens before it are the prompt, of which all but the last are in the slot's cache, a bias makes
the token that stands there the most probable one, and the server returns its log-probability and those of the K best
without that bias. So a position costs one step of generation. (A grammar of token ids would force a whole passage in
one request, to the same numbers and 1.4 times as fast with 128 tokens of a small model, where requests are a large
part of the time; it cannot generate past an end-of-turn token or one without text.)
"""

from __future__ import annotations

import math
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.verify.client import Client
from quantkit.verify.divergence.rows import Rows, as_list
from quantkit.verify.records import Passage, Scores

PATH = "/completion"
FORCING = 1000.0  # added to the logit of the token to generate; no model's logits are that far apart
# Softmax in float32: a probability that underflowed is said to be the lowest float32.
UNDERFLOWED = -1e38
SMALLEST = math.log(2.0**-149)  # of the smallest float32


def scorer(client: Client, top: int, vocab: int) -> Callable[[Passage], Scores]:
    """A function that scores a passage; many threads may call it, as many at a time as the server has slots get on."""
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(int(client.get("/props").get("total_slots") or 1)):
        slots.put(slot)
    plain = _plain_token(client)

    def score(passage: Passage) -> Scores:
        rows = Rows(passage.scored, top)
        ids = as_list(passage.ids)
        with _taken(slots) as slot:
            for position in range(passage.scored):
                before, token = ids[: position + 1], ids[position + 1]
                listed = _listed(client, slot, before, token, plain, top, vocab)
                rows.put(position, listed.get(token), list(listed), list(listed.values()))
        return rows.scores()

    return score


def _listed(
    client: Client, slot: int, before: list[int], token: int, plain: int, top: int, vocab: int
) -> dict[int, float | None]:
    """Log p of the K best tokens after `before`, the best first, and of `token`; or of all tokens.

    The server lists nothing for a generated token whose text ends inside a character. Then, and where all tokens are
    listed anyway, another one is generated.
    """
    if top < vocab:
        step = _step(client, slot, before, token, top)
        if step is not None:
            best = _logprobs(step["top_logprobs"])
            if step["id"] != token and any(value is not None for value in best.values()):
                raise QuantkitError(
                    f"{client.server.url}: generated token {step['id']} where {token} was forced; its text cannot be "
                    "scored, use llama.cpp's own server without --backend-sampling"
                )
            return best | {token: _logprobs([step])[step["id"]]}
    step = _step(client, slot, before, plain, vocab)
    return {} if step is None else _logprobs(step["top_logprobs"])


def _step(client: Client, slot: int, before: list[int], token: int, listed: int) -> dict[str, Any] | None:
    """What the server tells of generating `token`, None for nothing."""
    body = {
        "prompt": before,
        "n_predict": 1,
        "n_probs": listed,
        "logit_bias": [[token, FORCING]],
        "temperature": -1,  # the most probable token, without sampling
        "cache_prompt": True,
        "id_slot": slot,
        "response_fields": ["completion_probabilities"],  # not the prompt again
    }
    steps = client.post(PATH, body).get("completion_probabilities")
    return steps[0] if steps else None


def _logprobs(entries: list[dict[str, Any]]) -> dict[int, float | None]:
    found: dict[int, float | None] = {}
    for entry in entries:
        value = entry["logprob"]
        found[entry["id"]] = SMALLEST if value is not None and value < UNDERFLOWED else value
    return found


def _plain_token(client: Client) -> int:
    """A token whose text is whole characters."""
    tokens: list[int] = client.post("/tokenize", {"content": "a", "add_special": False})["tokens"]
    return tokens[0]


@contextmanager
def _taken(slots: queue.SimpleQueue[int]) -> Iterator[int]:
    """A slot for one passage alone, so that its cache holds the passage."""
    slot = slots.get()
    try:
        yield slot
    finally:
        slots.put(slot)

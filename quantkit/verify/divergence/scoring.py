"""Score passages on a running server: the same token ids for every model, whatever the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quantkit.errors import BadInput
from quantkit.verify.client import Client, run_all
from quantkit.verify.divergence import llama_cpp, sglang, vllm
from quantkit.verify.records import Passage, Scores
from quantkit.verify.servers.runtimes import LLAMA_CPP, SGLANG, VLLM


@dataclass(frozen=True)
class Engine:
    """How one kind of server scores. `generated` tokens come after a passage and need room in the context."""

    scorer: Callable[[Client, int, int], Callable[[Passage], Scores]]
    top: int  # log-probabilities per position
    small_top: int  # the same with a vocabulary of at most SMALL_VOCABULARY
    generated: int
    context_flag: str


SMALL_VOCABULARY = 8192

ENGINES = {
    VLLM: Engine(vllm.scorer, top=128, small_top=1024, generated=1, context_flag="--max-model-len"),
    # A passage's last token is never in the prompt. Of 4096 tokens a position is 0.3 MB of JSON.
    LLAMA_CPP: Engine(llama_cpp.scorer, top=128, small_top=SMALL_VOCABULARY, generated=0, context_flag="-c, per slot,"),
    SGLANG: Engine(sglang.scorer, top=128, small_top=1024, generated=1, context_flag="--context-length"),
}


def default_top(engine: str, vocab: int) -> int:
    """How many log-probabilities per position are asked of an engine. Raises BadInput for one that tells none."""
    kind = _engine(engine)
    return min(kind.small_top if vocab <= SMALL_VOCABULARY else kind.top, vocab)


def score_passages(
    client: Client,
    passages: Sequence[Passage],
    numbers: Sequence[int],
    vocab: int,
    top: int,
    keep: Callable[[int, Scores], None],
    concurrency: int,
) -> None:
    """Score those of `passages` whose `numbers` are given, K = min(top, vocab), and hand each to `keep` when done.

    Positions where the model's answer is not finite are NaN. Raises BadInput, before anything is asked, for a server
    that cannot score prompts and for a passage longer than its context.
    """
    kind = _engine(client.server.engine)
    context = client.server.context
    for number in numbers:
        passage = passages[number]
        needed = len(passage.ids) + kind.generated
        if context is not None and needed > context:
            raise BadInput(
                f"text {passage.name}: {len(passage.ids)} tokens need a context of {needed}, {client.server.url} has "
                f"{context}; start it with a larger {kind.context_flag} or give shorter texts"
            )
    score = kind.scorer(client, min(top, vocab), vocab)
    run_all(numbers, lambda number: score(passages[number]), keep, concurrency)


def _engine(name: str) -> Engine:
    if name not in ENGINES:
        raise BadInput(
            f"{name}: such a server tells no log-probabilities of a prompt, so texts cannot be scored on it; "
            f"use {', '.join(ENGINES)}, or verify tool calls alone"
        )
    return ENGINES[name]
